//! The sequences that one body asks for. What fails of them ends all: those left are dropped, and so taken back.

use futures::{TryFuture, TryFutureExt, TryStreamExt, stream::FuturesUnordered};

use super::collect::{Completed, collect};
use crate::{
    app::AppState,
    error::{Error, Invalid},
    infer::Generation,
    request::GenerateRequest,
};

/// Tokens of prompts, each with its alternatives, that are kept until the last sequence of a body has ended: some 100 MB.
/// Those of outputs take time to make, and so bound themselves.
const MAX_PROMPT_ENTRIES: u64 = 1 << 20;

/// Runs `copies` of each prompt to their ends, in the order of the choices.
pub(super) async fn complete(
    state: &AppState,
    prompts: Vec<GenerateRequest>,
    copies: usize,
) -> Result<Vec<Completed>, Error> {
    let generations = queue(state, prompts, copies).await?;
    let given: u64 = generations.iter().map(|generation| generation.info.prompt_entries).sum();
    if given > MAX_PROMPT_ENTRIES {
        let error = Invalid::PromptEntries { max: MAX_PROMPT_ENTRIES, given }.into();
        state.metrics.rejected(&error);
        return Err(error);
    }
    all(generations.into_iter().map(collect)).await
}

/// Queues `copies` of each prompt.
pub(super) async fn queue(
    state: &AppState,
    prompts: Vec<GenerateRequest>,
    copies: usize,
) -> Result<Vec<Generation>, Error> {
    let requests = fan_out(state, prompts, copies).map_err(Error::from);
    let requests = requests.inspect_err(|error| state.metrics.rejected(error))?;
    all(requests.into_iter().map(|request| state.infer.generate(request))).await
}

/// A seed is given to the first copy of each prompt and the next numbers to the others, so that choices differ and a
/// repeated request repeats them all.
fn fan_out(
    state: &AppState,
    prompts: Vec<GenerateRequest>,
    copies: usize,
) -> Result<Vec<GenerateRequest>, Invalid> {
    let (given, max) = (prompts.len().saturating_mul(copies), state.config.limits.max_concurrent_requests);
    if given > max {
        // Waiting would not help.
        return Err(Invalid::Sequences { max, given });
    }
    if copies == 1 {
        return Ok(prompts);
    }
    // Each copy has the memory of the prompt once more.
    prompts.iter().try_for_each(|request| state.validator.check_size(&request.prompt))?;
    let copy = |request: &GenerateRequest, number: usize| {
        let mut request = request.clone();
        request.params.seed = request.params.seed.map(|seed| seed.wrapping_add(number as u64));
        request
    };
    Ok(prompts.iter().flat_map(|request| (0..copies).map(move |number| copy(request, number))).collect())
}

/// What all come to, in their order, or the first error that there is. `try_join_all` waits for the turn of an error
/// where there are more than 30.
async fn all<F: TryFuture>(futures: impl Iterator<Item = F>) -> Result<Vec<F::Ok>, F::Error> {
    let numbered = futures.enumerate().map(|(index, future)| future.map_ok(move |done| (index, done)));
    let mut done: Vec<_> = numbered.collect::<FuturesUnordered<_>>().try_collect().await?;
    done.sort_unstable_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, done)| done).collect())
}
