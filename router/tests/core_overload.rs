//! Bounds: what leaves gives everything back, what is too much is refused at once.

mod common;

use std::time::{Duration, Instant};

use common::{Harness, collect, for_adapter, request, sim, with_params};
use futures::{StreamExt, future::join_all};
use lorikeet_bench::sim::{Control, SimConfig};
use lorikeet_router::{error::Error, output::Output};

fn slow() -> SimConfig {
    SimConfig { step_time: Duration::from_millis(5), ..sim() }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_gives_everything_back() {
    let harness = Harness::with(slow(), &["--max-batch-size", "4"]).await;
    let jobs = (0..60).map(|index| {
        let harness = &harness;
        async move {
            let asked = for_adapter(&format!("known/{}", index % 5), request(&format!("p {index}"), 1000));
            // Some leave while their adapter loads or they queue, some after a few tokens.
            let leave_after = Duration::from_millis(index * 3);
            tokio::time::timeout(leave_after, async {
                let mut generation = harness.state.infer.generate(asked).await.unwrap();
                while generation.next().await.is_some() {}
            })
            .await
            .unwrap_err();
        }
    });
    join_all(jobs).await;
    harness.wait_idle().await;
    // The slots of the last ones are released by the next step.
    harness.generate(request("after", 3)).await.unwrap();
    harness.wait_idle().await;
    assert!(Control::count(&harness.sim().control().live_slots) <= 1);
    assert_eq!(harness.violations(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_ends_the_sequence_in_the_engine() {
    let harness = Harness::with(slow(), &[]).await;
    let whole = harness.generate(request("run on", 12)).await.unwrap().text;
    let asked = with_params(request("run on", 2000), |params| params.stop = vec![whole[4..9].to_owned()]);
    let mut generation = harness.state.infer.generate(asked).await.unwrap();
    while let Some(output) = generation.next().await {
        if let Output::Finished { .. } = output.unwrap() {
            break;
        }
    }
    // Still held, and the engine has let go all the same.
    harness.wait_idle().await;
    drop(generation);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_request_wherever_it_is() {
    let harness = Harness::with(slow(), &["--max-batch-size", "1", "--request-timeout", "0.3"]).await;
    let outcomes = join_all((0..3).map(|_| harness.generate(request("too long", 2000)))).await;
    assert!(outcomes.into_iter().all(|outcome| outcome.unwrap_err() == Error::DeadlineExceeded));
    harness.wait_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once() {
    let harness = Harness::with(slow(), &["--max-batch-size", "2", "--max-waiting-requests", "4"]).await;
    let running: Vec<_> = join_all((0..6).map(|_| harness.state.infer.generate(request("a", 400)))).await;
    let accepted: Vec<_> = running.into_iter().filter_map(Result::ok).collect();
    assert!(accepted.len() >= 4);
    tokio::time::sleep(Duration::from_millis(150)).await;
    let mut refused = 0;
    let mut more = Vec::new();
    for _ in 0..8 {
        match harness.state.infer.generate(request("b", 400)).await {
            Err(Error::Overloaded { retry_after }) => {
                refused += 1;
                assert!(retry_after >= Duration::from_secs(1));
            }
            Ok(generation) => more.push(generation),
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused >= 4);
    // Those who were accepted are served.
    for generation in accepted.into_iter().chain(more) {
        assert_eq!(collect(generation).await.unwrap().generated_tokens, 400);
    }
    harness.wait_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_requests_at_once_and_no_more() {
    let harness = Harness::with(slow(), &["--max-concurrent-requests", "3"]).await;
    let held: Vec<_> =
        join_all((0..3).map(|_| async { harness.state.infer.generate(request("a", 500)).await.unwrap() }))
            .await;
    let refused = harness.state.infer.generate(request("a", 1)).await.err().unwrap();
    assert!(matches!(refused, Error::Overloaded { .. }));
    drop(held);
    harness.generate(request("a", 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_prompt_delays_nobody() {
    let flags = ["--max-prompt-bytes", "3000000", "--max-input-length", "4000", "--validation-workers", "2"];
    let harness = Harness::with(sim(), &flags).await;
    let huge = "a b".repeat(900_000);
    let huge = (0..4).map(|_| harness.state.infer.generate(request(&huge, 1)));
    let small = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let started = Instant::now();
        for _ in 0..5 {
            harness.generate(request("small", 2)).await.unwrap();
        }
        started.elapsed()
    };
    let (huge, small) = tokio::join!(join_all(huge), small);
    for outcome in huge {
        assert!(matches!(outcome.err().unwrap(), Error::Validation(_)));
    }
    assert!(small < Duration::from_secs(2), "{small:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_refuses_the_new_and_finishes_the_old() {
    let harness = Harness::with(slow(), &[]).await;
    let running = harness.state.infer.generate(request("old", 40)).await.unwrap();
    harness.state.infer.close();
    assert_eq!(harness.state.infer.generate(request("new", 1)).await.err().unwrap(), Error::Draining);
    assert_eq!(collect(running).await.unwrap().generated_tokens, 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_ended_from_outside_are_told_why() {
    let harness = Harness::with(slow(), &["--max-batch-size", "2"]).await;
    let running =
        join_all((0..5).map(|_| async { harness.state.infer.generate(request("a", 500)).await.unwrap() }));
    let running = running.await;
    harness.driver.fail_all(Error::Draining).await;
    for generation in running {
        assert_eq!(collect(generation).await.unwrap_err(), Error::Draining);
    }
    harness.wait_idle().await;
}
