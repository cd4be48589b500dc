use super::*;
use proptest::prelude::*;

#[test]
fn profiles_are_valid_and_without_doubts() {
    for profile in [Profile::Lan, Profile::Wan] {
        let settings = Settings::of(&profile);
        settings.config().unwrap();
        assert_eq!(settings.doubts(), Vec::<String>::new(), "{profile}");
    }
    let (ms, us) = (Duration::from_millis, Duration::from_micros);
    assert_eq!(Settings::lan().warnings(us(500), ms(5)), Vec::<String>::new());
    assert_eq!(Settings::wan().warnings(ms(100), ms(20)), Vec::<String>::new());
}

#[test]
fn what_follows_is_printed() {
    let text = Settings::lan().derived().to_string();
    assert_eq!(
        text,
        "lease 600 ms, worst failover 1.42 s, append budget 100 ms, vote budget 400 ms, snapshot budget 30 s, tick 20.3 ms, \
         silence after losing the majority 1.8 s"
    );
    assert_eq!(Text(Duration::from_micros(215)).to_string(), "0.21 ms");
    assert_eq!(Text(Duration::from_secs(300)).to_string(), "300 s");
    assert_eq!(Text(Duration::ZERO).to_string(), "0 ms");
}

#[test]
fn every_mistake_is_named_at_once() {
    let ms = Duration::from_millis;
    let lan = Settings::lan;
    let cases: [(Settings, &[&str]); 9] = [
        (Settings { election: (ms(600), ms(400)), ..lan() }, &["electionMax 400 ms must be above electionMin 600 ms"]),
        (Settings { election: (ms(600), ms(600)), ..lan() }, &["electionMax 600 ms must be above electionMin 600 ms"]),
        (Settings { heartbeat: ms(300), ..lan() }, &["electionMin 400 ms must be at least two heartbeats, 600 ms"]),
        (Settings { heartbeat: ms(0), ..lan() }, &["heartbeat 0 ms must be at least 10 ms", "batchLinger"]),
        (Settings { heartbeat: Duration::from_micros(100_500), ..lan() }, &["heartbeat 100.5ms must be whole milliseconds"]),
        (Settings { proposal_deadline: ms(600), ..lan() }, &["proposalDeadline 600 ms must be above electionMax 600 ms"]),
        (
            Settings { proposal_deadline: Duration::MAX, snapshot_deadline: ms(10), ..lan() },
            &["proposalDeadline", "at most 600 s", "snapshotDeadline 10 ms must be at least 1 s"],
        ),
        (Settings { snapshot_every: 0, append_entries: 0, ..lan() }, &["snapshotEvery 0 must be between 1", "appendEntries 0 must be between 1"]),
        (Settings { segment_bytes: 10, keep_entries: u64::MAX, ..lan() }, &["segmentBytes 10", "keepEntries"]),
    ];
    for (settings, expected) in cases {
        let e = settings.config().map(|_| ()).unwrap_err().to_string();
        assert!(!e.contains('\n'));
        for part in expected {
            assert!(e.contains(part), "{part:?} is not in {e:?}");
        }
    }
}

#[test]
fn what_is_too_tight_is_said() {
    let ms = Duration::from_millis;
    let said = Settings::lan().warnings(ms(60), ms(10)).join("\n");
    assert!(said.contains("heartbeat 100 ms is too short for round trips of 60 ms and syncs of 10 ms"), "{said}");
    assert!(said.contains("electionMin 400 ms is too short"), "{said}");
    let doubts = Settings { heartbeat: ms(150), election: (ms(400), ms(450)), proposal_deadline: ms(500), ..Settings::lan() }.doubts().join("\n");
    for part in ["below four heartbeats (600 ms)", "split the votes", "below the worst failover (1.23 s)"] {
        assert!(doubts.contains(part), "{part:?} is not in {doubts}");
    }
}

#[test]
fn proposals_for_known_networks() {
    let (ms, us) = (Duration::from_millis, Duration::from_micros);
    assert_eq!(Settings::propose(us(300), ms(2)), Settings::lan());
    let slow_disk = Settings::propose(us(300), ms(100));
    assert!(slow_disk.heartbeat >= ms(400), "{slow_disk:?}");
    let sites = Settings::propose(ms(60), ms(5));
    assert_eq!((sites.heartbeat, sites.election), (ms(200), (ms(1400), ms(2100))));
    assert_eq!(sites.keep_entries, Settings::wan().keep_entries);
    let reasons = Settings::reasons(ms(60), ms(5)).join("\n");
    for part in ["heartbeat 200 ms", "a slow append takes 135 ms", "election 1.4 s–2.1 s", "between sites"] {
        assert!(reasons.contains(part), "{part:?} is not in {reasons}");
    }
}

proptest! {
    /// Whatever is measured, the proposal can be used, and is not too tight for what it was made for.
    #[test]
    fn proposals_are_usable(rtt in 0u64..30_000_000, fsync in 0u64..5_000_000) {
        let (rtt, fsync) = (Duration::from_micros(rtt), Duration::from_micros(fsync));
        let settings = Settings::propose(rtt, fsync);
        if rtt < Duration::from_secs(2) && fsync < Duration::from_secs(1) {
            prop_assert!(settings.config().is_ok(), "{:?}: {:?}", settings, settings.config().map(|_| ()));
            prop_assert_eq!(settings.warnings(rtt, fsync), Vec::<String>::new());
        }
        prop_assert!(Settings::reasons(rtt, fsync).iter().all(|r| !r.contains('\n')));
    }
}
