//! Tests of the `lorikeet` executable from outside.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod doctor;
mod flags;
mod machines;
mod supervision;
mod support;
