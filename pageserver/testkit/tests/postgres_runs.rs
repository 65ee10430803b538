//! The launcher itself, on every major.

use testkit::{Postgres, PostgresConfig, Shutdown};

#[tokio::test]
async fn every_major_starts_stops_crashes_and_comes_back() {
    for major in testkit::postgres::MAJORS {
        let config = PostgresConfig::new(major).wal_segment_mib(1).checksums(major % 2 == 0).archive();
        let mut postgres = Postgres::start(&config).await.unwrap();
        let version = postgres.value("SHOW server_version_num").await.unwrap();
        assert_eq!(version[..2], major.to_string());
        assert_eq!(postgres.value("SHOW wal_segment_size").await.unwrap(), "1MB");
        postgres.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n; CREATE EXTENSION amcheck; CHECKPOINT").await.unwrap();
        postgres.crash();
        postgres.start_again().await.unwrap();
        assert_eq!(postgres.value("SELECT sum(n) FROM t").await.unwrap(), "500500");
        postgres.run_program("pg_amcheck", &["--all", "--heapallindexed"]).await.unwrap();
        let backup = postgres.base_backup("copy").await.unwrap();
        assert!(backup.join("global/pg_control").exists());
        postgres.stop(Shutdown::Fast).await.unwrap();
        postgres.start_again().await.unwrap();
        postgres.stop(Shutdown::Immediate).await.unwrap();
        assert_eq!(
            postgres.installation().own_program("pg_waldump").is_some(),
            [15, 16, 18].contains(&major)
        );
    }
}
