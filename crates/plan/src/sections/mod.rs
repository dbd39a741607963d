//! The sixteen sections of a plan, each a function of the facts.

mod care;
mod emergency;
mod failures;
mod register;
mod shape;

use crate::facts::Facts;
use crate::layout::Layout;
use crate::report::Section;

/// What every section is written from.
pub(crate) struct Draft<'a> {
    pub(crate) facts: &'a Facts<'a>,
    pub(crate) layout: Layout,
}

/// All of them, in order.
pub(crate) fn all(facts: &Facts<'_>) -> Vec<Section> {
    let draft = Draft { facts, layout: Layout::of(facts.spec) };
    vec![
        shape::cover(&draft),
        shape::service(&draft),
        shape::architecture(&draft),
        register::configuration(&draft),
        failures::policy(&draft),
        care::backups(&draft),
        failures::matrix(&draft),
        emergency::procedures(&draft),
        emergency::communication(&draft),
        care::calendar(&draft),
        care::changes(&draft),
        register::monitoring(&draft),
        register::security(&draft),
        care::drills(&draft),
        failures::risks(&draft),
        emergency::appendix(&draft),
    ]
}

/// The risks that the plan accepts, for the summary too.
pub(crate) fn risks(facts: &Facts<'_>) -> Vec<String> {
    failures::risk_texts(&Draft { facts, layout: Layout::of(facts.spec) })
}
