//! The workload itself: it runs, and a crash and recovery does not change what was answered. One major is enough here,
//! as the page oracle runs it on each.

use testkit::workload::{Workload, answers};
use testkit::{Postgres, PostgresConfig};

#[tokio::test]
async fn what_was_recorded_is_what_recovery_answers() {
    let mut postgres = Postgres::start(&PostgresConfig::new(16)).await.unwrap();
    let moment = {
        let mut work = Workload::new(&postgres, 16, 1);
        work.prepare().await.unwrap();
        work.round().await.unwrap();
        work.round().await.unwrap();
        work.record().await.unwrap()
    };
    assert!(moment.answers.contains("round 2 number 3"), "no prepared transaction waits");
    postgres.crash();
    postgres.start_again().await.unwrap();
    line_by_line(&moment.answers, &answers(&postgres).await.unwrap());
}

fn line_by_line(recorded: &str, now: &str) {
    for (recorded, now) in recorded.lines().zip(now.lines()) {
        assert_eq!(recorded, now);
    }
    assert_eq!(recorded.lines().count(), now.lines().count());
}
