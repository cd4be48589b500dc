//! Log lines that strangers can provoke, at a bounded rate.

use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// At most one line in this time.
const EVERY: Duration = Duration::from_secs(10);

/// Decides whether a line is written. What is left out is counted.
#[derive(Default)]
pub(crate) struct LogLimit(Mutex<(Option<Instant>, u64)>);

impl LogLimit {
    /// Whether to write this one.
    pub(crate) fn allow(&self) -> bool {
        self.take().is_some()
    }

    /// `Some` with the number of lines left out since the last one.
    pub(crate) fn take(&self) -> Option<u64> {
        let mut state = self.0.lock();
        let (last, skipped) = &mut *state;
        let now = Instant::now();
        if last.is_some_and(|at| now.saturating_duration_since(at) < EVERY) {
            *skipped = skipped.saturating_add(1);
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_a_few_lines() {
        let limit = LogLimit::default();
        assert_eq!(limit.take(), Some(0));
        for _ in 0..1000 {
            assert_eq!(limit.take(), None);
        }
        tokio::time::advance(EVERY).await;
        assert_eq!(limit.take(), Some(1000));
        assert!(!limit.allow());
    }
}
