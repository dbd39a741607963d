//! Pseudo-random numbers from the configured seed: for copy ids and pauses, where two nodes must not draw alike.

use mainstay_model::CopyId;

/// xorshift64*.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A sequence that differs by node, seed and process life.
    pub(crate) fn new(seed: u64, life: u64, name: &str) -> Random {
        let mut state = seed ^ life.rotate_left(32) ^ 0x9E37_79B9_7F4A_7C15;
        for byte in name.bytes() {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
        Random(state.max(1))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// From `low` up to, not including, `high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % high.saturating_sub(low).max(1)
    }

    /// A copy id; xorshift never yields a zero state, and the multiplier is odd, so the number is not 0.
    pub(crate) fn copy(&mut self) -> Option<CopyId> {
        CopyId::new(self.next().max(1))
    }
}
