//! Measures the live cluster and proposes settings of replication.

use crate::{
    ClusterError, Measured, TuneReport, TunedSetting,
    gather::ask_all,
    proto::Percentiles,
    shared::{Shared, no_leader},
};
use ikada_raft::Settings;
use std::{sync::Arc, time::Duration};

/// Writes that change nothing: every voter syncs its log for each.
const WRITES: usize = 64;
/// Most time for them.
const WRITING: Duration = Duration::from_secs(10);

fn duration(nanos: u64) -> Duration {
    Duration::from_nanos(nanos)
}

fn in_ms(nanos: u64) -> f64 {
    duration(nanos).as_secs_f64() * 1000.0
}

fn counted(p: Option<Percentiles>) -> Option<Percentiles> {
    p.filter(|p| p.count > 0)
}

fn text(d: Duration) -> String {
    format!("{}ms", d.as_millis())
}

/// Where two settings differ, and what is proposed; names as in the configuration.
fn table(now: &Settings, next: &Settings) -> Vec<TunedSetting> {
    let setting = |name: &str, current: String, proposed: String| TunedSetting { name: name.to_owned(), current, proposed };
    vec![
        setting("heartbeat", text(now.heartbeat), text(next.heartbeat)),
        setting("electionMin", text(now.election.0), text(next.election.0)),
        setting("electionMax", text(now.election.1), text(next.election.1)),
        setting("proposalDeadline", text(now.proposal_deadline), text(next.proposal_deadline)),
        setting("snapshotDeadline", text(now.snapshot_deadline), text(next.snapshot_deadline)),
        setting("batchLinger", text(now.batch_linger), text(next.batch_linger)),
        setting("keepEntries", now.keep_entries.to_string(), next.keep_entries.to_string()),
    ]
}

pub(crate) async fn tune(shared: &Arc<Shared>) -> Result<TuneReport, ClusterError> {
    let write = async {
        for _ in 0..WRITES {
            if shared.propose(Vec::new()).await.is_err() {
                return;
            }
        }
    };
    // Measuring a cluster that accepts no writes is worth something too, but its disks were not asked.
    tokio::time::timeout(WRITING, write).await.ok();
    let status = shared.store.status();
    let answers = ask_all(shared, &status, true).await;
    if status.leader.is_none() {
        return Err(ClusterError::Unavailable(no_leader(&status)));
    }
    let of = |id: u64| answers.get(&id).and_then(|a| a.as_ref().ok()).map(|(s, _)| s);
    let mut measured = Vec::new();
    let (mut slowest_trip, mut slowest_sync) = (0, 0);
    for m in &status.members {
        let id = m.member.id;
        let trips: Vec<Percentiles> = status
            .members
            .iter()
            .filter_map(|from| counted(of(from.member.id)?.round_trips.iter().find(|r| r.node == id)?.time))
            .collect();
        let sync = of(id).and_then(|s| counted(s.fsync));
        // A learner may be slow: nothing waits for it.
        if m.voter {
            slowest_trip = trips.iter().map(|p| p.p99).fold(slowest_trip, u64::max);
            slowest_sync = slowest_sync.max(sync.map_or(0, |p| p.p99));
        }
        measured.push(Measured {
            id,
            name: m.member.name.clone(),
            round_trip_p50_ms: trips.iter().map(|p| p.p50).max().map(in_ms),
            round_trip_p99_ms: trips.iter().map(|p| p.p99).max().map(in_ms),
            fsync_p50_ms: sync.map(|p| in_ms(p.p50)),
            fsync_p99_ms: sync.map(|p| in_ms(p.p99)),
            error: answers.get(&id).and_then(|a| a.as_ref().err()).cloned(),
        });
    }
    if slowest_sync == 0 {
        return Err(ClusterError::Unavailable("no voter has measured its disk; try again when the cluster accepts writes".to_owned()));
    }
    let (trip, sync) = (duration(slowest_trip), duration(slowest_sync));
    let proposed = Settings::propose(trip, sync);
    let settings = table(&shared.settings, &proposed);
    let mut reasons = Settings::reasons(trip, sync);
    reasons.extend(shared.settings.warnings(trip, sync));
    let silent: Vec<String> = measured.iter().filter(|m| m.error.is_some()).map(|m| m.id.to_string()).collect();
    if !silent.is_empty() {
        reasons.push(format!("measured without node {}, which did not answer", silent.join(", ")));
    }
    let changes: Vec<String> =
        settings.iter().filter(|s| s.current != s.proposed).map(|s| format!("{}: {}", s.name, s.proposed)).collect();
    let apply = if changes.is_empty() {
        "nothing to change: the settings fit the cluster".to_owned()
    } else {
        format!(
            "set raft: {{profile: custom, {}}} in the configuration of every node, and restart the nodes one after another, the leader last; \
             settings take effect at start",
            changes.join(", ")
        )
    };
    Ok(TuneReport { measured, settings, reasons, apply })
}
