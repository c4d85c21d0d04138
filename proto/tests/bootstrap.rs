//! Regenerates `src/gen` from the `.proto` files and fails if what is committed differs.
//! The new code is left in place, so a second run passes: commit it.

use std::path::Path;

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fresh = tempfile::tempdir().unwrap();
    let descriptors =
        protox::compile([root.join("lorikeet/v1/shard.proto")], [root]).expect("shard.proto compiles");
    tonic_prost_build::configure()
        .out_dir(fresh.path())
        .client_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .compile_fds(descriptors)
        .unwrap();

    let committed = root.join("src/gen/lorikeet.v1.rs");
    let new = std::fs::read_to_string(fresh.path().join("lorikeet.v1.rs")).unwrap();
    let old = std::fs::read_to_string(&committed).unwrap_or_default();
    if old != new {
        std::fs::write(&committed, &new).unwrap();
    }
    assert!(old == new, "src/gen/lorikeet.v1.rs was out of date and has been rewritten: commit it");
}
