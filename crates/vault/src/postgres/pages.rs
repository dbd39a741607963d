//! Pages: the checksum that the server keeps in each, and our own fingerprint of each block.

/// Bytes of a page, and of a block of any other file.
pub(crate) const PAGE: usize = 8192;
const LANES: usize = 32;
const PRIME: u32 = 16_777_619;
const OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

fn mix(sum: u32, value: u32) -> u32 {
    let mixed = sum ^ value;
    mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
}

/// The checksum of a page as the server computes it.
fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = OFFSETS;
    for (row, bytes) in page.chunks_exact(LANES * 4).enumerate() {
        for (lane, (sum, word)) in sums.iter_mut().zip(bytes.chunks_exact(4)).enumerate() {
            let mut value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            // The checksum's own place, bytes 8 and 9, counts as zero.
            if row == 0 && lane == 2 {
                value &= 0xFFFF_0000;
            }
            *sum = mix(*sum, value);
        }
    }
    for _ in 0..2 {
        sums.iter_mut().for_each(|sum| *sum = mix(*sum, 0));
    }
    let sum = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    u16::try_from(sum % 65535 + 1).unwrap_or(0)
}

/// Is the page as its checksum says? A page that was never written has none.
pub(crate) fn good(page: &[u8], block: u32) -> bool {
    if page.len() < PAGE || page.get(14..16) == Some(&[0, 0]) {
        return page.len() < PAGE || page.iter().all(|byte| *byte == 0);
    }
    page.get(8..10) == Some(&checksum(page, block).to_le_bytes())
}

/// When the page was changed last.
pub(crate) fn lsn(page: &[u8]) -> u64 {
    let word = |at: usize| page.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map_or(0, u32::from_le_bytes);
    u64::from(word(0)) << 32 | u64::from(word(4))
}

/// A fingerprint of each block, as bytes: what a restore compares with.
pub(crate) fn fingerprints(content: &[u8], into: &mut Vec<u8>) {
    for block in content.chunks(PAGE) {
        into.extend_from_slice(&xxhash_rust::xxh3::xxh3_64(block).to_le_bytes());
    }
}

/// The fingerprint of fingerprints.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// Where in an extent's content each block lies: pieces begin blocks of their own.
pub(crate) fn places(pieces: &[(u32, u64, u32)]) -> Vec<std::ops::Range<usize>> {
    let (mut all, mut from) = (Vec::new(), 0);
    for (_, _, len) in pieces {
        let end = from + *len as usize;
        while from < end {
            let next = (from + PAGE).min(end);
            all.push(from..next);
            from = next;
        }
    }
    all
}
