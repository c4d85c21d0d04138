//! A router over simulated shards, in one process, with a tokenizer small enough to read.

#![allow(dead_code, unreachable_pub, reason = "each test crate uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::{
    fs, iter,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use futures::StreamExt;
use lorikeet_bench::sim::{Control, Eos, SimConfig, SimShard};
use lorikeet_router::{
    Started,
    adapters::AdapterSource,
    app::AppState,
    config::Config,
    driver::Driver,
    error::Error,
    infer::Generation,
    output::{FinishReason, Output, TokenOutput},
    readiness::Readiness,
    request::{AdapterRef, GenerateRequest, Params, Prompt},
    validate::Tokenizer,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle, time::timeout};

pub const BOS: u32 = 0;
pub const EOS: u32 = 1;
/// The first token after the special ones.
pub const FIRST: u32 = 4;
/// One past the last token whose text is printable ASCII.
pub const ASCII_END: u32 = FIRST + 95 + MERGES.len() as u32;
/// Every byte is a token, and some pairs are.
pub const VOCABULARY: u32 = FIRST + 256 + MERGES.len() as u32;
const MERGES: [(&str, &str); 9] = [
    ("Ġ", "t"),
    ("h", "e"),
    ("Ġt", "he"),
    ("l", "l"),
    ("x", "S"),
    ("T", "O"),
    ("xS", "TO"),
    ("P", "y"),
    ("e", "ll"),
];
/// ChatML.
pub const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] \
    + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Writes a byte-level BPE tokenizer: four special tokens, printable ASCII, merges, the other bytes.
pub fn write_tokenizer(directory: &Path) {
    let mut vocabulary = serde_json::Map::new();
    let mut add = |token: String| {
        let id = vocabulary.len();
        vocabulary.insert(token, json!(id));
    };
    for special in ["<s>", "</s>", "<|im_start|>", "<|im_end|>"] {
        add(special.to_owned());
    }
    for byte in 32..127 {
        add(byte_level(byte).into());
    }
    for (left, right) in MERGES {
        add(format!("{left}{right}"));
    }
    for byte in (0..=255).filter(|byte| !(32..127).contains(byte)) {
        add(byte_level(byte).into());
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false})
    };
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>"), special(2, "<|im_start|>"), special(3, "<|im_end|>")],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        },
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": MERGES.map(|(l, r)| format!("{l} {r}"))},
    });
    let write =
        |file: &str, value: &serde_json::Value| fs::write(directory.join(file), value.to_string()).unwrap();
    write("tokenizer.json", &tokenizer);
    write("tokenizer_config.json", &json!({"eos_token": {"content": "</s>"}, "chat_template": TEMPLATE}));
    write("generation_config.json", &json!({"eos_token_id": [EOS]}));
    write("config.json", &json!({"eos_token_id": EOS}));
}

/// How byte-level BPE writes a byte.
fn byte_level(byte: u8) -> char {
    let plain = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if plain(byte) {
        return byte.into();
    }
    let index = (0..byte).filter(|&before| !plain(before)).count() as u32;
    char::from_u32(256 + index).unwrap()
}

/// A simulated shard that samples printable ASCII and never ends by itself.
pub fn sim() -> SimConfig {
    SimConfig { vocab_size: VOCABULARY, sampled: FIRST..ASCII_END, ..SimConfig::default() }
}

/// One whose sequences end after 30 tokens or so.
pub fn sim_with_eos() -> SimConfig {
    SimConfig { eos: Some(Eos { token: EOS, once_in: 30 }), ..sim() }
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    config: Config,
}

/// A running router.
pub struct Harness {
    pub directory: TempDir,
    pub sims: Vec<Option<SimShard>>,
    pub sim_config: SimConfig,
    pub state: AppState,
    pub driver: Driver,
    pub driving: JoinHandle<()>,
    pub readiness: watch::Sender<Readiness>,
}

impl Harness {
    /// One shard and the default flags, ready.
    pub async fn new() -> Self {
        Self::with(sim(), &[]).await
    }

    pub async fn with(sim: SimConfig, flags: &[&str]) -> Self {
        let harness = Self::starting(sim, flags, 1);
        harness.wait_ready().await;
        harness
    }

    /// Not waiting for readiness.
    pub fn starting(sim: SimConfig, flags: &[&str], ranks: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        write_tokenizer(directory.path());
        let sims = (0..ranks)
            .map(|rank| {
                let place = SimConfig { rank, local_rank: rank, world_size: ranks, ..sim.clone() };
                Some(start_sim(directory.path(), place))
            })
            .collect();
        Self::over(directory, sims, sim, flags)
    }

    /// In front of these shards, which are at their places in the directory or told of by rank 0.
    pub fn over(directory: TempDir, sims: Vec<Option<SimShard>>, sim: SimConfig, flags: &[&str]) -> Self {
        let local = fs::read_dir(directory.path()).unwrap().flatten();
        let local = local.filter(|entry| entry.file_name().to_string_lossy().starts_with("shard-")).count();
        let config = config(directory.path(), local as u32, flags);
        config.check().unwrap();
        let (readiness, ready) = watch::channel(Readiness::default());
        let Started { state, driver, driving } =
            lorikeet_router::start(config, readiness.clone(), ready).unwrap();
        Self { directory, sims, sim_config: sim, state, driver, driving, readiness }
    }

    pub async fn wait_ready(&self) {
        self.wait_readiness(Readiness::Ready).await;
    }

    pub async fn wait_readiness(&self, wanted: Readiness) {
        let mut readiness = self.state.readiness.clone();
        timeout(Duration::from_secs(20), readiness.wait_for(|now| *now == wanted)).await.unwrap().unwrap();
    }

    pub fn sim(&self) -> &SimShard {
        self.sims[0].as_ref().unwrap()
    }

    /// Kills a rank.
    pub fn kill(&mut self, rank: usize) {
        self.sims[rank] = None;
    }

    pub fn revive(&mut self, rank: usize) {
        let config = SimConfig {
            rank: rank as u32,
            local_rank: rank as u32,
            world_size: self.sims.len() as u32,
            ..self.sim_config.clone()
        };
        self.sims[rank] = Some(start_sim(self.directory.path(), config));
    }

    pub fn tokenizer(&self) -> Arc<Tokenizer> {
        Arc::clone(self.state.validator.tokenizer())
    }

    /// The whole output. A request that hangs is a failed test.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Collected, Error> {
        let whole = async { collect(self.state.infer.generate(request).await?).await };
        let outcome = timeout(Duration::from_secs(30), whole).await;
        outcome.unwrap_or_else(|_| panic!("a request hangs: {}", self.held()))
    }

    /// Everything that holds something for a request, for a test that fails.
    fn held(&self) -> String {
        let shard = self.sims.first().and_then(Option::as_ref).map(SimShard::control);
        format!(
            "{:?}\n{:?}\n{:?}\n{shard:?}",
            *self.state.readiness.borrow(),
            self.state.metrics.engine(),
            self.state.registry.stats()
        )
    }

    /// The tokens of a right answer.
    pub fn expected(&self, prompt: &str, adapter: Option<&str>, limit: usize) -> Vec<u32> {
        let tokens = self.tokenizer().encode(prompt, true).unwrap();
        lorikeet_bench::sim::expected(&tokens, adapter, limit, &self.sim_config)
    }

    /// Mistakes of the router that the first shard has seen.
    pub fn violations(&self) -> u64 {
        Control::count(&self.sim().control().violations)
    }

    /// The base model and these adapters answer as they should, and leave nothing behind.
    pub async fn serves(&self, adapters: &[&str]) {
        for adapter in iter::once(None).chain(adapters.iter().copied().map(Some)) {
            let asked = request("after", 5);
            let asked = adapter.map_or(asked.clone(), |id| for_adapter(id, asked));
            assert_eq!(self.generate(asked).await.unwrap().ids(), self.expected("after", adapter, 5));
        }
        self.wait_idle().await;
        assert_eq!(self.violations(), 0);
    }

    /// Waits until nothing is held for any request, here or on the shard.
    pub async fn wait_idle(&self) {
        let idle = || {
            let engine = self.state.metrics.engine();
            let stats = &engine.stats;
            let host = self.state.registry.stats();
            let held =
                (stats.queued_requests, stats.running_sequences, stats.blocks_used, stats.adapters_pinned);
            (held, host.pinned, host.flights) == ((0, 0, 0, 0), 0, 0)
        };
        for _ in 0..500 {
            if idle() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("still held: {}", self.held());
    }
}

pub fn start_sim(directory: &Path, config: SimConfig) -> SimShard {
    SimShard::start(&socket(directory, config.rank), config).unwrap()
}

fn socket(directory: &Path, rank: u32) -> PathBuf {
    directory.join(format!("shard-{rank}"))
}

/// The configuration that these flags give.
pub fn config(directory: &Path, ranks: u32, flags: &[&str]) -> Config {
    let directory_flag = directory.to_str().unwrap().to_owned();
    let mut argv: Vec<String> = ["router", "--model-id", "sim", "--tokenizer-path"]
        .into_iter()
        .map(str::to_owned)
        .chain([directory_flag])
        .collect();
    for rank in 0..ranks {
        argv.push("--shard-socket".into());
        argv.push(socket(directory, rank).to_str().unwrap().to_owned());
    }
    argv.extend(flags.iter().map(|&flag| flag.to_owned()));
    Cli::parse_from(argv).config
}

/// Greedy, for the base model.
pub fn request(prompt: &str, max_new_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: Prompt::Text { text: prompt.to_owned(), add_special_tokens: true },
        adapter: AdapterRef::Base,
        params: Params { max_new_tokens: Some(max_new_tokens), ..Params::default() },
        request_id: "test".into(),
    }
}

pub fn for_adapter(id: &str, request: GenerateRequest) -> GenerateRequest {
    GenerateRequest {
        adapter: AdapterRef::Named { id: id.to_owned(), source: AdapterSource::Local },
        ..request
    }
}

pub fn with_params(request: GenerateRequest, change: impl FnOnce(&mut Params)) -> GenerateRequest {
    let mut request = request;
    change(&mut request.params);
    request
}

/// A stream read to its end.
#[derive(Debug)]
pub struct Collected {
    pub text: String,
    pub tokens: Vec<TokenOutput>,
    pub prompt: Option<Vec<lorikeet_router::output::PromptToken>>,
    pub reason: FinishReason,
    pub generated_tokens: u32,
    pub cached_tokens: u32,
}

impl Collected {
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

pub async fn collect(mut generation: Generation) -> Result<Collected, Error> {
    let (mut text, mut tokens, mut prompt) = (String::new(), Vec::new(), None);
    while let Some(output) = generation.next().await {
        match output? {
            Output::Prompt(given) => {
                assert!(tokens.is_empty() && prompt.is_none());
                prompt = Some(given);
            }
            Output::Token(token) => {
                text.push_str(&token.delta);
                tokens.push(token);
            }
            Output::Finished { reason, generated_tokens, cached_tokens, .. } => {
                assert!(generation.next().await.is_none());
                return Ok(Collected { text, tokens, prompt, reason, generated_tokens, cached_tokens });
            }
        }
    }
    panic!("a stream ended without a last word");
}
