//! What is generated from the .proto file is what is checked in. `BLESS=1` writes it anew.

use std::path::Path;

#[test]
fn the_generated_code_is_that_of_the_proto_file() {
    // As cargo says now: a build that is kept between checkouts may have been made in another one.
    let home = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
    let home = Path::new(&home);
    let files = protox::compile(["palimpsest/control/v1/control.proto"], [home]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure().out_dir(out.path()).compile_fds(files).unwrap();
    let fresh = std::fs::read_to_string(out.path().join("palimpsest.control.v1.rs")).unwrap();
    let kept = home.join("src/generated/palimpsest.control.v1.rs");
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
        std::fs::write(&kept, &fresh).unwrap();
    }
    let kept = std::fs::read_to_string(&kept).unwrap_or_default();
    assert!(fresh == kept, "the .proto file changed: run this test with BLESS=1");
}
