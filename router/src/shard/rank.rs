//! One rank: where it listens, and a client of it.

use std::{io, path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use lorikeet_proto::v1::{InfoResponse, shard_client::ShardClient};
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

/// Largest message, here as on the shards: a result with log-probabilities of a long prompt stays far below it.
const MAX_MESSAGE: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// What a shard on another machine knows its router by.
const TOKEN: &str = "lorikeet-token";

pub(super) type Client = ShardClient<InterceptedService<Channel, Token>>;

/// One of the group, as it was when the group was met.
pub(super) struct Rank {
    pub(super) address: Address,
    /// Everything but the token path, which has a connection of its own.
    pub(super) control: Client,
    /// Whether it fetches adapters for its machine, whose ranks share one store.
    pub(super) has_store: bool,
}

impl Rank {
    pub(super) fn new(address: Address, control: Client, info: &InfoResponse) -> Self {
        Self { address, control, has_store: info.local_rank == 0 }
    }
}

/// Where a rank listens.
#[derive(Clone)]
pub(super) enum Address {
    Socket(PathBuf),
    /// On another machine.
    Tcp {
        at: Uri,
        token: Token,
    },
}

/// Shown with every call, if there is one.
#[derive(Clone, Default)]
pub(super) struct Token(Option<AsciiMetadataValue>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert(TOKEN, token.clone());
        }
        Ok(request)
    }
}

impl Address {
    /// `at`: `host:port`.
    pub(super) fn tcp(at: &str, token: &str) -> Result<Self, Status> {
        match (format!("http://{at}").parse(), token.parse()) {
            (Ok(at), Ok(token)) => Ok(Self::Tcp { at, token: Token(Some(token)) }),
            _ => Err(Status::internal(format!("rank 0 tells of a shard at {at:?}, which is no address"))),
        }
    }

    /// A client with a connection of its own, made when first used and again when the shard comes back there.
    pub(super) fn client(&self) -> Client {
        let (channel, token) = match self {
            Self::Tcp { at, token } => {
                // A step must not wait for more to be sent with it.
                let endpoint = Endpoint::from(at.clone()).connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
                (endpoint.connect_lazy(), token.clone())
            }
            Self::Socket(path) => {
                let path = path.clone();
                // The address is never used: the connector knows the path.
                let channel = Endpoint::from_static("http://shard")
                    .connect_timeout(CONNECT_TIMEOUT)
                    .connect_with_connector_lazy(service_fn(move |_| {
                        let path = path.clone();
                        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
                    }));
                (channel, Token::default())
            }
        };
        ShardClient::with_interceptor(channel, token)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }
}
