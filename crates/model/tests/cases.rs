//! All small cases: the sound ones exhausted, and a counterexample for every safeguard removed.

use tidings_model::cases::{self, Case};

/// Every small case is far below; one that grew beyond belongs with the large ones.
const LIMIT: usize = 1_500_000;

fn check(is_asked: impl Fn(&Case) -> bool) {
    let cases: Vec<Case> = cases::all();
    let asked = cases.iter().filter(|c| !c.is_large && is_asked(c));
    let mut wrong = vec![];
    for case in asked {
        let outcome = case.run(LIMIT);
        wrong.extend(case.judge(&outcome).err());
        if outcome.is_cut {
            wrong.push(format!("{} is cut at {LIMIT} states", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn devices_are_told_the_truth() {
    check(|c| c.finds.is_none() && c.name.starts_with("client"));
}

#[test]
fn a_key_sends_once() {
    check(|c| c.finds.is_none() && c.name.starts_with("once"));
}

#[test]
fn routers_say_what_the_log_says() {
    check(|c| c.finds.is_none() && c.name.starts_with("store"));
}

#[test]
fn every_safeguard_removed_is_found() {
    check(|c| c.finds.is_some());
}

#[test]
fn names_are_single() {
    let cases = cases::all();
    for (i, case) in cases.iter().enumerate() {
        assert!(
            cases[..i].iter().all(|c| c.name != case.name),
            "{}",
            case.name
        );
    }
}

#[test]
fn a_search_that_is_cut_says_so() {
    let cases = cases::all();
    let case = cases.iter().find(|c| c.name == "client").expect("a case");
    let outcome = case.run(1000);
    assert!(outcome.is_cut && outcome.states <= 1001);
}
