//! "This did happen": a simulator in which nothing happens finds nothing. A long run fails when one of these stays zero.

macro_rules! counters {
    ($($name:ident $text:literal;)*) => {
        /// What happened, summed over schedules.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters { $(#[doc = $text] pub $name: u64,)* }
        impl Counters {
            /// Adds another schedule's.
            pub fn add(&mut self, other: &Counters) { $(self.$name += other.$name;)* }
            /// Names, descriptions and numbers.
            #[must_use]
            pub fn list(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), $text, self.$name)),*]
            }
        }
    };
}

counters! {
    events "events";
    steps "inputs that reached decisions";
    elections "terms raised";
    claims "claims written";
    openings "openings";
    fast_forwards "candidates that streamed from a better one";
    sync_writes "changes of members or quorum";
    settings "changes of the server's setting";
    degradations "primaries that went on alone";
    acknowledged "commits acknowledged";
    late_acks "commits acknowledged after a newer primary had opened";
    double_openings "openings while an older primary was open";
    switchovers "claims released in favour of a named node";
    rewinds "logs rewound";
    clones "copies cloned";
    restarts "primaries restarted in place";
    fences "servers killed by the guard's deadline";
    lost_promises "promise files lost";
    targeted "faults aimed at the protocol's own steps";
}

impl Counters {
    /// What should have happened and did not.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.list().into_iter().filter(|(_, _, count)| *count == 0).map(|(name, _, _)| name).collect()
    }
}
