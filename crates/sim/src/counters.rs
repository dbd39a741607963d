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
    failovers "failovers ordered";
    forced "claims forced by an operator who accepted the loss";
    restarts_ordered "restarts of replicas ordered";
    restarts_in_place "restarts of primaries ordered";
    reinits "copies given up on request";
    refusals "commands refused";
    pauses "pauses";
    resumes "resumptions";
    nodes_added "nodes added";
    nodes_removed "nodes removed";
    nodes_replaced "nodes wiped and replaced";
    removed_stopped "servers of removed nodes stopped";
    to_strict "changes to strict while running";
    to_available "changes to available while running";
    to_async "changes to asynchronous while running";
    sync_changes "changes of how many replicas commits wait for";
    lease_changes "changes of the lease";
    recoveries "stores rebuilt from one node";
    superseded "nodes that heard of a rebuilt store and stood aside";
    orphans "commits acknowledged by the lost part after the store was rebuilt";
    lossy_claims "claims that may lose something";
    disks_frozen "volumes that stood still for a while";
    doomed "servers killed on such a volume, dead and not gone";
    handed_doomed "claims released by a node whose dead server was not gone";
    blocked_promises "promises that could not be made durable for a while";
    seen_renewals "renewals known only by a watched grant of one's own";
    unstartable "copies that could not be started any more";
    starts_failed "servers that did not start for a while";
    idle_released "terms given back by a holder whose server did not come up";
    log_gone "copies whose log was gone at their source";
    losses "acknowledged commits lost where that was allowed, and reported";
}

impl Counters {
    /// What should have happened and did not.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.list().into_iter().filter(|(_, _, count)| *count == 0).map(|(name, _, _)| name).collect()
    }
}
