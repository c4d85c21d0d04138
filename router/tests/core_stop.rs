//! Stop strings, wherever they fall.

mod common;

use common::{Harness, VOCABULARY, request, sim, sim_with_eos, with_params};
use lorikeet_bench::sim::{Eos, SimConfig};
use lorikeet_router::output::FinishReason;

/// Every place in an output where a stop string may begin and end, in either mode, gives the text cut there.
#[tokio::test(flavor = "multi_thread")]
async fn every_substring_stops_where_it_ends() {
    let harness = Harness::new().await;
    let whole = harness.generate(request("find me", 24)).await.unwrap().text;
    for (start, length) in
        (0..whole.len() - 8).step_by(3).flat_map(|start| [1, 2, 3, 5, 8].map(|n| (start, n)))
    {
        let stop = whole[start..start + length].to_owned();
        let end = whole.find(&stop).unwrap();
        for include_stop in [false, true] {
            let asked = with_params(request("find me", 24), |params| {
                params.stop = vec!["\u{1F980}".to_owned(), stop.clone()];
                params.include_stop = include_stop;
            });
            let output = harness.generate(asked).await.unwrap();
            assert_eq!(output.reason, FinishReason::StopSequence);
            let cut = if include_stop { end + stop.len() } else { end };
            assert_eq!(output.text, whole[..cut], "{stop:?}");
            // No token that comes wholly after the stop string.
            let before_last: usize =
                output.tokens[..output.tokens.len() - 1].iter().map(|token| token.text.len()).sum();
            assert!(before_last < end + stop.len());
        }
    }
    harness.wait_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_stop_string_is_shown_before_it_is_known() {
    let harness = Harness::new().await;
    let whole = harness.generate(request("hold back", 30)).await.unwrap();
    let stop = whole.text[10..16].to_owned();
    let asked = with_params(request("hold back", 30), |params| params.stop = vec![stop]);
    let output = harness.generate(asked).await.unwrap();
    let shown: String = output.tokens.iter().map(|token| token.delta.as_str()).collect();
    assert_eq!(shown, whole.text[..10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_held_back_is_given_at_the_end() {
    let harness = Harness::new().await;
    let whole = harness.generate(request("the end", 20)).await.unwrap().text;
    let stop = format!("{}\u{1}", &whole[whole.len() - 4..]);
    let asked = with_params(request("the end", 20), |params| params.stop = vec![stop]);
    let output = harness.generate(asked).await.unwrap();
    assert_eq!((output.text, output.reason), (whole, FinishReason::Length));
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_are_found_across_bytes_of_a_character() {
    let harness = Harness::with(SimConfig { sampled: 4..VOCABULARY, ..sim() }, &[]).await;
    for index in 0..8 {
        let prompt = format!("bytes {index}");
        let whole = harness.generate(request(&prompt, 120)).await.unwrap().text;
        let chars: Vec<(usize, char)> = whole.char_indices().collect();
        let (start, end) = (chars[chars.len() / 2].0, chars[chars.len() / 2 + 3].0);
        let stop = whole[start..end].to_owned();
        let asked = with_params(request(&prompt, 120), |params| params.stop = vec![stop.clone()]);
        let output = harness.generate(asked).await.unwrap();
        assert_eq!(output.text, whole[..whole.find(&stop).unwrap()]);
    }
}

/// A turn may end with a token that is special and does not end a sequence: adapters for a chat template of their
/// own, on a base model, are trained so.
#[tokio::test(flavor = "multi_thread")]
async fn a_special_token_is_a_stop_string_too() {
    let turn_end = Eos { token: 3, once_in: 10 };
    let harness = Harness::with(SimConfig { eos: Some(turn_end), ..sim() }, &[]).await;
    let whole = harness.generate(request("my turn", 200)).await.unwrap();
    let at = whole.tokens.iter().position(|token| token.id == turn_end.token).unwrap();
    let before: String = whole.tokens[..at].iter().map(|token| token.delta.as_str()).collect();
    for include_stop in [false, true] {
        let asked = with_params(request("my turn", 200), |params| {
            params.stop = vec!["<|im_end|>".to_owned()];
            params.include_stop = include_stop;
        });
        let output = harness.generate(asked).await.unwrap();
        assert_eq!(output.reason, FinishReason::StopSequence);
        assert_eq!((output.text.as_str(), output.tokens.len()), (before.as_str(), at + 1));
        assert_eq!(output.tokens[at].text, "<|im_end|>");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_sequence_is_no_stop_string() {
    let harness = Harness::with(sim_with_eos(), &[]).await;
    let asked = with_params(request("the end", 200), |params| {
        params.stop = vec!["</s>".to_owned(), "\u{1}".to_owned()];
    });
    assert_eq!(harness.generate(asked).await.unwrap().reason, FinishReason::Eos);
}
