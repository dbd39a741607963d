//! A bank: money moves between accounts, and is neither made nor lost, in any snapshot on any node.

use std::collections::BTreeMap;

/// What one query saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    /// On which node.
    pub node: String,
    /// How many accounts.
    pub accounts: i64,
    /// What they hold together.
    pub total: i64,
}

/// What is not right: snapshots with another sum, or with some accounts only. None at all are right: a replica may not have them yet.
#[must_use]
pub fn wrong(sums: &BTreeMap<(String, i64, i64), u64>, accounts: i64, total: i64) -> Vec<Sum> {
    let right = |seen: i64, sum: i64| seen == 0 || (seen == accounts && sum == total);
    let wrong = sums.keys().filter(|(_, seen, sum)| !right(*seen, *sum));
    wrong.map(|(node, accounts, total)| Sum { node: node.clone(), accounts: *accounts, total: *total }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_snapshots_with_all_the_money_are_right() {
        let seen = |accounts, total| BTreeMap::from([(("db1".to_owned(), accounts, total), 3)]);
        assert_eq!(wrong(&seen(8, 800), 8, 800), []);
        assert_eq!(wrong(&seen(0, 0), 8, 800), []);
        assert_eq!(wrong(&seen(8, 795), 8, 800).len(), 1);
        assert_eq!(wrong(&seen(7, 800), 8, 800).len(), 1);
    }
}
