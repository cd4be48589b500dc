//! What is broken, when, and how it is healed. The plan follows from the seed and is printed before it is carried out.

use crate::rng::Rng;
use std::{fmt, time::Duration};

/// Which nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// One, by its place.
    One(usize),
    /// The one that leads at that time; the first when nobody says who does.
    Leader,
    /// More than half, from this place on.
    Majority(usize),
    /// All.
    All,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::One(n) => write!(f, "n{}", n + 1),
            Target::Leader => f.write_str("the leader"),
            Target::Majority(n) => write!(f, "a majority from n{}", n + 1),
            Target::All => f.write_str("all nodes"),
        }
    }
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; healed by a start.
    Kill(Target),
    /// SIGSTOP; healed by SIGCONT.
    Pause(Target),
    /// The target is cut off from all others, both ways.
    Isolate(Target),
    /// Two halves; the first node of the second half is this one.
    Halves(usize),
    /// No two nodes but those that include this one hear each other: a bridge.
    Bridge(usize),
    /// The target hears nobody, but is heard.
    Deaf(Target),
    /// The target is not heard, but hears.
    Mute(Target),
    /// The disk loses what was not synced; healed by a start.
    PowerLoss(Target),
    /// The disk has no space left.
    FullDisk(Target),
    /// The wall clock is wrong by so many seconds.
    Clock(Target, i64),
    /// It is removed from the cluster, its disk is emptied, and it joins anew, under another id.
    Replace(Target),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill(t) => write!(f, "kill -9 of {t}"),
            Fault::Pause(t) => write!(f, "pause of {t}"),
            Fault::Isolate(t) => write!(f, "{t} cut off"),
            Fault::Halves(n) => write!(f, "network in halves, the second from n{}", n + 1),
            Fault::Bridge(n) => write!(f, "n{} the only bridge", n + 1),
            Fault::Deaf(t) => write!(f, "{t} deaf (one-way cut)"),
            Fault::Mute(t) => write!(f, "{t} mute (one-way cut)"),
            Fault::PowerLoss(t) => write!(f, "power loss of {t}"),
            Fault::FullDisk(t) => write!(f, "full disk of {t}"),
            Fault::Clock(t, s) => write!(f, "clock of {t} wrong by {s:+} s"),
            Fault::Replace(t) => write!(f, "{t} removed, wiped and joined anew"),
        }
    }
}

impl Fault {
    /// Name of its kind, as the history has it.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Kill(_) => "kill",
            Fault::Pause(_) => "pause",
            Fault::Isolate(_) | Fault::Halves(_) | Fault::Bridge(_) => "partition",
            Fault::Deaf(_) | Fault::Mute(_) => "one-way-partition",
            Fault::PowerLoss(_) => "power-loss",
            Fault::FullDisk(_) => "full-disk",
            Fault::Clock(..) => "clock",
            Fault::Replace(_) => "replace",
        }
    }
}

/// Faults at the same time, how long they last, and how long it is quiet afterwards.
#[derive(Clone, Debug)]
pub struct Step {
    /// What.
    pub faults: Vec<Fault>,
    /// How long.
    pub hold: Duration,
    /// Afterwards.
    pub quiet: Duration,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.faults.iter().map(ToString::to_string).collect();
        write!(f, "{} for {:.1} s, then quiet for {:.1} s", faults.join(" and "), self.hold.as_secs_f64(), self.quiet.as_secs_f64())
    }
}

/// Kinds that come first in every plan, so that short runs have them.
const FIRST: [&str; 4] = ["kill", "power-loss", "partition", "pause"];
const LATER: [&str; 4] = ["one-way-partition", "full-disk", "clock", "replace"];

fn target(rng: &mut Rng, nodes: usize) -> Target {
    match rng.below(10) {
        0..3 => Target::One(rng.index(nodes)),
        3..7 => Target::Leader,
        7..9 if nodes > 1 => Target::Majority(rng.index(nodes)),
        _ => Target::All,
    }
}

/// One node: what cuts off or deafens more than one is the same as cutting off the rest.
fn single(rng: &mut Rng, nodes: usize) -> Target {
    if rng.chance(60) { Target::Leader } else { Target::One(rng.index(nodes)) }
}

fn fault(kind: &str, rng: &mut Rng, nodes: usize) -> Fault {
    match kind {
        "kill" => Fault::Kill(target(rng, nodes)),
        "pause" => Fault::Pause(target(rng, nodes)),
        "partition" => match rng.below(3) {
            0 => Fault::Isolate(single(rng, nodes)),
            1 => Fault::Halves(rng.index(nodes)),
            _ => Fault::Bridge(rng.index(nodes)),
        },
        "one-way-partition" if rng.chance(50) => Fault::Deaf(single(rng, nodes)),
        "one-way-partition" => Fault::Mute(single(rng, nodes)),
        "power-loss" => Fault::PowerLoss(target(rng, nodes)),
        "full-disk" => Fault::FullDisk(single(rng, nodes)),
        "replace" => Fault::Replace(single(rng, nodes)),
        _ => {
            let seconds = [-3600, -60, -2, 2, 60, 3600][rng.index(6)];
            Fault::Clock(single(rng, nodes), seconds)
        }
    }
}

/// A plan for so much time. `clocks`: clocks can be moved.
pub fn plan(mut rng: Rng, nodes: usize, time: Duration, clocks: bool) -> Vec<Step> {
    let possible = |kind: &&str| match *kind {
        "partition" | "one-way-partition" => nodes > 1,
        "clock" => clocks,
        "replace" => nodes > 2,
        _ => true,
    };
    let mut steps = Vec::new();
    let mut left = time;
    let mut bag: Vec<&str> = Vec::new();
    let mut rounds = 0;
    // The longest step has to fit.
    while left > Duration::from_secs(6) {
        if bag.is_empty() {
            bag = FIRST.into_iter().filter(possible).collect();
            if rounds > 0 {
                bag.extend(LATER.into_iter().filter(possible));
            }
            rng.shuffle(&mut bag);
            if rounds == 0 {
                let mut later: Vec<&str> = LATER.into_iter().filter(possible).collect();
                rng.shuffle(&mut later);
                // Taken from the end.
                later.append(&mut bag);
                bag = later;
            }
            rounds += 1;
        }
        let Some(kind) = bag.pop() else { break };
        let mut faults = vec![fault(kind, &mut rng, nodes)];
        // Now and then two things break at once, in the first round never.
        if rounds > 1 && kind != "replace" && rng.chance(25) {
            let others: Vec<&str> = FIRST.into_iter().chain(LATER).filter(possible).filter(|k| *k != kind && *k != "replace").collect();
            if let Some(other) = others.get(rng.index(others.len())) {
                faults.push(fault(other, &mut rng, nodes));
            }
        }
        // In short plans steps are short, so that all of the first kinds come to pass.
        let longest = if time < Duration::from_secs(90) { 3500 } else { 8000 };
        let hold = Duration::from_millis(rng.between(1500, longest));
        let quiet = Duration::from_millis(rng.between(1500, longest.min(5000)));
        left = left.saturating_sub(hold + quiet);
        steps.push(Step { faults, hold, quiet });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_follows_from_its_seed_and_has_everything() {
        let text = |seed, nodes, seconds| {
            plan(Rng::new(seed), nodes, Duration::from_secs(seconds), true).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(text(5, 3, 300), text(5, 3, 300));
        assert_ne!(text(5, 3, 300), text(6, 3, 300));
        let kinds = |nodes, seconds: u64| {
            let mut all: Vec<_> = (0..20)
                .map(|seed| {
                    let mut kinds: Vec<_> = plan(Rng::new(seed), nodes, Duration::from_secs(seconds), true)
                        .iter()
                        .flat_map(|s| s.faults.iter().map(Fault::name))
                        .collect();
                    kinds.sort_unstable();
                    kinds.dedup();
                    kinds
                })
                .collect();
            all.sort();
            all
        };
        for k in kinds(3, 300) {
            assert_eq!(k, ["clock", "full-disk", "kill", "one-way-partition", "partition", "pause", "power-loss", "replace"]);
        }
        for k in kinds(3, 35) {
            assert!(FIRST.iter().all(|f| k.contains(f)), "{k:?}");
        }
        assert!(kinds(1, 300).iter().flatten().all(|k| !k.contains("partition")));
        assert!(plan(Rng::new(1), 3, Duration::from_secs(3), true).is_empty());
    }
}
