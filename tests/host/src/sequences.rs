// SPDX-License-Identifier: GPL-2.0

//! Random operation sequences for the [`model`](crate::model), with seeds and shrinking.

use crate::model::{
    Counts,
    Kind,
    Op,
    Outcome,
    World,
    Wrong, //
};
use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{
        Config,
        RngAlgorithm,
        TestCaseError,
        TestError,
        TestRng,
        TestRunner, //
    },
};
use std::{
    cell::{
        Cell,
        RefCell, //
    },
    env,
    panic::{
        catch_unwind,
        AssertUnwindSafe, //
    },
    time::{
        Instant,
        SystemTime, //
    },
};

/// Operations of a sequence, at most.
const LENGTH: usize = 160;

/// What operations there are, and how often.
const KINDS: [(u32, Kind); 26] = [
    (6, Kind::Mmap),
    (1, Kind::MmapWipe),
    (10, Kind::Fault),
    (3, Kind::FaultLarge),
    (4, Kind::Write),
    (5, Kind::Fork),
    (2, Kind::Exit),
    (2, Kind::Munmap),
    (1, Kind::MunmapFails),
    (3, Kind::Split),
    (3, Kind::Merge),
    (3, Kind::Mremap),
    (2, Kind::MremapFixed),
    (2, Kind::MremapGrow),
    (1, Kind::MremapKeep),
    (2, Kind::MoveHome),
    (2, Kind::UffdMove),
    (3, Kind::SwapOut),
    (3, Kind::SwapIn),
    (2, Kind::DropCache),
    (5, Kind::Migrate),
    (4, Kind::Referenced),
    (20, Kind::Step),
    (12, Kind::Finish),
    (1, Kind::Mode),
    (1, Kind::Chain),
];

/// One of [`KINDS`]. Not `prop_oneof!`, which makes a generator of random numbers for each of its
/// arms: that took most of the time.
fn kinds() -> impl Strategy<Value = Kind> {
    let sum = KINDS.iter().map(|kind| kind.0).sum::<u32>();
    (0..sum).prop_map(|mut at| {
        let kind = KINDS.iter().find(|kind| match at.checked_sub(kind.0) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        });
        kind.expect("below the sum").1
    })
}

fn sequences() -> impl Strategy<Value = Vec<Op>> {
    let op = (kinds(), any::<[u8; 4]>());
    vec(
        op.prop_map(|(kind, [a, b, c, d])| Op { kind, a, b, c, d }),
        1..LENGTH,
    )
}

/// Runs a sequence, and returns what it did, or what the model has found or asserted.
fn run(wrong: Option<Wrong>, ops: &[Op]) -> Result<Counts, String> {
    let mut world = World::new(wrong);
    let all = |world: &mut World| -> Outcome {
        for &op in ops {
            world.apply(op)?;
        }
        world.end()
    };
    match catch_unwind(AssertUnwindSafe(|| all(&mut world))) {
        Ok(outcome) => outcome.map(|()| world.counts),
        Err(cause) => {
            let text = cause.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
            Err(format!("a panic: {}", text.unwrap_or_default()))
        }
    }
}

/// `SEED`, or else the time.
fn seed() -> u64 {
    let given = env::var("SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        time.map_or(1, |time| time.as_nanos() as u64 % 1_000_000_000)
    })
}

fn runner(seed: u64, cases: Option<u32>) -> TestRunner {
    let config = Config {
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let cases = cases.unwrap_or_else(|| {
        // Where it was not asked for, more than proptest's default.
        env::var_os("PROPTEST_CASES").map_or(10_000, |_| config.cases)
    });
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    TestRunner::new_with_rng(Config { cases, ..config }, rng)
}

#[test]
fn walks_find_what_page_tables_have() {
    let (seed, started) = (seed(), Instant::now());
    println!("figures: sequences: SEED={seed}");
    let sum = RefCell::new((0_u64, 0_u64, Counts::default()));
    let outcome = runner(seed, None).run(&sequences(), |ops| {
        let counts = run(None, &ops).map_err(TestCaseError::fail)?;
        let (cases, total, sum) = &mut *sum.borrow_mut();
        *cases += 1;
        *total += ops.len() as u64;
        sum.add(&counts);
        Ok(())
    });
    let (cases, total, sum) = *sum.borrow();
    println!(
        "figures: sequences: {cases} of {total} operations, {:.1} s",
        started.elapsed().as_secs_f32()
    );
    println!("figures: sequences: {sum:?}");
    if let Err(TestError::Fail(reason, ops)) = outcome {
        panic!("SEED={seed}: {reason}; the shortest sequence: {ops:#?}");
    }
    assert!(outcome.is_ok(), "SEED={seed}: {outcome:?}");
    assert!(sum.nothing_idle(), "an operation never happened: {sum:?}");
}

#[test]
fn broken_rules_are_found() {
    let mut missed = Vec::new();
    for wrong in Wrong::ALL {
        // Sequences, and those that fail in another way: a broken rule may lead to that, too.
        let (tried, other) = (Cell::new(0_u64), Cell::new(0_u64));
        let outcome = runner(1, Some(20_000)).run(&sequences(), |ops| {
            tried.set(tried.get() + 1);
            match run(Some(wrong), &ops) {
                Err(reason) if reason.contains(wrong.how()) => Err(TestCaseError::fail(reason)),
                Err(_) => {
                    other.set(other.get() + 1);
                    Ok(())
                }
                Ok(_) => Ok(()),
            }
        });
        match outcome {
            Err(TestError::Fail(reason, ops)) => println!(
                "figures: {wrong:?} is found, {} sequences ({} fail in another way) with those to \
                 shrink it to {} operations: {}",
                tried.get(),
                other.get(),
                ops.len(),
                reason.message()
            ),
            _ => missed.push(wrong),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
