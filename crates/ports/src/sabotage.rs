//! Switches that break one safety rule each, on purpose, at run time: so that the suite `chaos` proves that it would notice.
//!
//! They exist only with the cargo feature `sabotage`, which no release has. Without it [`on`] is the constant `false`.

/// The variable of the environment that names the switch.
pub const VARIABLE: &str = "MAINSTAY_SABOTAGE";

/// Is this switch on?
#[cfg(feature = "sabotage")]
#[must_use]
pub fn on(switch: &str) -> bool {
    std::env::var(VARIABLE).is_ok_and(|value| value == switch)
}

/// Is this switch on? Never: this build has none.
#[cfg(not(feature = "sabotage"))]
#[must_use]
pub const fn on(_switch: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    #[cfg(not(feature = "sabotage"))]
    #[test]
    fn an_ordinary_build_has_no_switch() {
        assert!(!super::on("no-fence"));
    }
}
