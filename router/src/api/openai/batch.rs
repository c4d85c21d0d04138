//! The outputs of the sequences that one body asks for: its prompts, each several times.

use futures::{
    StreamExt,
    future::ready,
    stream::{self, BoxStream},
};

use super::reply::Usage;
use crate::{
    api::collect::Completed,
    error::Error,
    infer::Generation,
    output::{FinishReason, Output},
};

/// An output and the index of the choice it belongs to.
pub(super) type Indexed = (usize, Result<Output, Error>);

/// The outputs of all as they come, once the first is there.
///
/// # Errors
/// The first item's, which can still have a status of its own.
pub(super) async fn merge(mut generations: Vec<Generation>) -> Result<BoxStream<'static, Indexed>, Error> {
    let mut merged: BoxStream<'static, Indexed> = if generations.len() == 1 {
        // The common case pays for no fan-in.
        match generations.pop() {
            Some(generation) => generation.map(|output| (0, output)).boxed(),
            None => stream::empty().boxed(),
        }
    } else {
        let numbered =
            generations.into_iter().enumerate().map(|(index, generation)| numbered(index, generation));
        stream::select_all(numbered).boxed()
    };
    let (index, first) = merged.next().await.ok_or(Error::Incomplete)?;
    let first = first?;
    Ok(stream::iter([(index, Ok(first))]).chain(merged).boxed())
}

/// The prompts alone, with a last word for each as if nothing had been generated.
pub(super) fn prompt_only(outputs: BoxStream<'static, Indexed>) -> BoxStream<'static, Indexed> {
    let without_tokens = |(index, mut output): Indexed| {
        match &mut output {
            Ok(Output::Token(_)) => return None,
            Ok(Output::Finished { reason, generated_tokens, .. }) => {
                (*reason, *generated_tokens) = (FinishReason::Length, 0);
            }
            _ => {}
        }
        Some((index, output))
    };
    outputs.filter_map(move |output| ready(without_tokens(output))).boxed()
}

/// A stream that ends without a `Finished` says so: in a merge its end would not be noticed.
fn numbered(index: usize, generation: Generation) -> BoxStream<'static, Indexed> {
    let ended = |output: &Result<Output, Error>| matches!(output, Ok(Output::Finished { .. }) | Err(_));
    stream::unfold(Some(generation), move |generation| async move {
        let mut generation = generation?;
        let output = generation.next().await.unwrap_or(Err(Error::Incomplete));
        let rest = (!ended(&output)).then_some(generation);
        Some(((index, output), rest))
    })
    .boxed()
}

/// What a body is charged: each prompt once, each sequence's output.
pub(super) fn usage(completed: &[Completed], copies: usize) -> Usage {
    let prompts = || completed.iter().step_by(copies);
    Usage::new(
        prompts().map(|first| u64::from(first.info.prompt_tokens)).sum(),
        completed.iter().map(|sequence| u64::from(sequence.generated_tokens)).sum(),
        // The later copies of a prompt reuse the first's: only what was there before counts.
        Some(prompts().map(|first| u64::from(first.cached_tokens)).sum()),
    )
}
