//! The load generator against a server: what it counts is what was served.

use clap::Parser;
use lorikeet_bench::load;

use crate::client::Server;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    load: load::Args,
}

async fn measure(server: &Server, flags: &[&str]) -> load::Report {
    let url = format!("http://{}", server.address);
    let fixed = ["load", "--url", &url, "--vocabulary", "1001", "--prompt", "Hello", "--max-tokens", "20"];
    load::measure(Flags::parse_from(fixed.iter().chain(flags)).load).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_and_open_loops_in_both_dialects() {
    let server = Server::new().await;
    for flags in [
        &["--clients", "4", "--requests", "12"][..],
        &["--clients", "4", "--requests", "12", "--api", "lorax", "--adapters", "known/{0..3}"],
        &["--clients", "4", "--requests", "12", "--adapters", "known/a,known/b", "--adapter-mix", "zipf:1"],
        &["--rate", "200", "--requests", "12", "--adapters", "known/{0..3}", "--adapter-mix", "uniform"],
    ] {
        let report = measure(&server, flags).await;
        assert_eq!((report.requests, report.errors, report.tokens), (12, 0, 240), "{flags:?} {report:?}");
        assert!(report.ttft_p50_ms > 0.0 && report.latency_p99_ms >= report.latency_p50_ms, "{report:?}");
    }
    let report = measure(&server, &["--clients", "2", "--duration", "0.2"]).await;
    assert!(report.requests > 2 && report.errors == 0, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_and_told() {
    let server = Server::new().await;
    let report = measure(&server, &["--requests", "3", "--adapters", "missing"]).await;
    assert_eq!((report.requests, report.errors, report.tokens), (3, 3, 0));
    assert!(report.error_messages[0].contains("404"), "{report:?}");
    assert!(load::measure(Flags::parse_from(["load", "--url", "http://127.0.0.1:1"]).load).await.is_err());
}
