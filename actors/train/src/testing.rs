//! What tests need: a tokens artefact, and links between ranks that are threads.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use sixfold_artifact::tokens::{
    MaskBits, ShardEntry, TokenIndex, TokenShards, TokenWriter, encode_boundaries, index_file, mask_file,
    shard_file,
};
use sixfold_artifact::{Manifest, Store};
use sixfold_cluster::task::Gang;
use sixfold_topology::Rank;
use sixfold_transport::link::{LinkError, TensorLink};
use sixfold_transport::tensor::local_pair;
use sixfold_wire::id::ArtifactId;

use crate::batches::Batches;
use crate::links::{LinkFactory, LinkPurpose, Links};
use crate::options::TrainOptions;

/// A tokenizer of one word.
pub(crate) const TOKENIZER: &[u8] =
    br#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
    "pre_tokenizer":null,"post_processor":null,"decoder":null,
    "model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#;

pub(crate) const VOCABULARY: u32 = 50;
pub(crate) const END_OF_TEXT: u32 = 0;
const DOCUMENT: usize = 37;
const SPLIT: &str = "train";
/// Far more than any message of these tests.
const WINDOW_BYTES: usize = 64 << 20;
const SILENCE: Duration = Duration::from_secs(60);

/// A corpus of `tokens` tokens in documents of equal length, in `store`.
pub(crate) fn tokens_artifact(store: &Store, tokens: usize) -> ArtifactId {
    artifact_of(store, &corpus(tokens), false)
}

fn corpus(tokens: usize) -> Vec<Vec<u32>> {
    let id = |at: usize| match (at + 1) % DOCUMENT {
        0 => END_OF_TEXT,
        _ => 1 + (at * at / 3 + at * 7) as u32 % (VOCABULARY - 1),
    };
    let ids: Vec<u32> = (0..tokens).map(id).collect();
    ids.chunks(DOCUMENT).map(<[u32]>::to_vec).collect()
}

/// Documents as both splits; in dialogues, those tokens are to be learned whose ids are odd.
pub(crate) fn artifact_of(store: &Store, documents: &[Vec<u32>], dialogues: bool) -> ArtifactId {
    let mut writer = TokenWriter::new(Vec::new(), VOCABULARY);
    let (mut boundaries, mut mask) = (vec![0], MaskBits::default());
    for document in documents {
        writer.push(document).unwrap();
        boundaries.push(writer.tokens());
        document.iter().for_each(|token| mask.push(token % 2 == 1));
    }
    let (bytes, tokens) = writer.finish().unwrap();
    let mut manifest = Manifest::new("tokens", "tokenize");
    manifest.files.push(store.put("tokenizer.json", TOKENIZER).unwrap());
    for split in [SPLIT, "held-out"] {
        let shard = ShardEntry { file: shard_file(split, 0), tokens };
        let mut index = TokenIndex::new(split, VOCABULARY, documents.len() as u64, vec![shard.clone()]);
        if dialogues {
            index = index.with_mask(split);
            manifest.files.push(store.put(&mask_file(split), mask.bytes()).unwrap());
        }
        manifest.files.push(store.put(&shard.file, &bytes).unwrap());
        manifest.files.push(store.put(&index.boundaries, &encode_boundaries(&boundaries)).unwrap());
        manifest.files.push(store.put(&index_file(split), &index.encode().unwrap()).unwrap());
    }
    store.publish(&manifest).unwrap()
}

/// Dialogues of very different lengths.
pub(crate) fn dialogues_artifact(store: &Store) -> ArtifactId {
    let dialogue = |index: usize| -> Vec<u32> {
        let token = |at: usize| 1 + (at * at / 3 + at * 7 + index * 11) as u32 % (VOCABULARY - 1);
        // Every fifth has one answer token in many.
        let kept = |at: usize| if index.is_multiple_of(5) && at != 3 { token(at) & !1 } else { token(at) };
        (0..3 + (index * index * 7) % 23).map(kept).collect()
    };
    let documents: Vec<_> = (0..120).map(dialogue).collect();
    artifact_of(store, &documents, true)
}

/// The batches of a corpus of 500 tokens.
pub(crate) fn batches(options: &TrainOptions, groups: Range<usize>) -> Batches {
    batches_of(options, groups, &corpus(500), false)
}

/// The batches of dialogues whose odd tokens are to be learned.
pub(crate) fn dialogue_batches(
    options: &TrainOptions,
    groups: Range<usize>,
    dialogues: &[&[u32]],
) -> Batches {
    let dialogues: Vec<Vec<u32>> = dialogues.iter().map(|dialogue| dialogue.to_vec()).collect();
    batches_of(options, groups, &dialogues, true)
}

fn batches_of(
    options: &TrainOptions,
    groups: Range<usize>,
    documents: &[Vec<u32>],
    dialogues: bool,
) -> Batches {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let tokens = artifact_of(&store, documents, dialogues);
    let shards = TokenShards::from_artifact(&store, tokens, SPLIT).unwrap();
    Batches::new(shards, options, groups).unwrap()
}

type Ends = HashMap<(LinkPurpose, Rank, Rank), Box<dyn TensorLink>>;

/// Links between the threads of a process. Whoever comes first makes both ends.
#[derive(Clone, Default)]
pub(crate) struct LocalLinks {
    ends: Arc<Mutex<Ends>>,
    /// Two ranks that take each other's place in the trees of sums.
    pub(crate) swapped: Option<(Rank, Rank)>,
    /// A rank that takes so much longer for every message that it sends.
    pub(crate) slowed: Option<(Rank, Duration)>,
}

impl LocalLinks {
    /// The links of `rank` to `peers`.
    pub(crate) fn take(&self, rank: Rank, peers: &[Rank], purpose: LinkPurpose) -> Links {
        let mut ends = self.ends.lock().unwrap();
        let mut take = |peer: Rank| {
            let peer = if purpose == LinkPurpose::Tensors { self.in_place_of(rank, peer) } else { peer };
            if let Some(end) = ends.remove(&(purpose, rank, peer)) {
                return end;
            }
            let (near, far) = local_pair(WINDOW_BYTES, SILENCE);
            ends.insert((purpose, peer, rank), Box::new(far));
            Box::new(near)
        };
        let slow = |link: Box<dyn TensorLink>| match self.slowed {
            Some((slow, delay)) if slow == rank => Box::new(SlowLink { link, delay }),
            _ => link,
        };
        peers.iter().map(|&peer| (peer, slow(take(peer)))).collect()
    }

    /// Whom `rank` meets where it expects `peer`, whose number differs from its own in one bit: the
    /// rank whose leaf is that far from the leaf that `rank` has taken.
    fn in_place_of(&self, rank: Rank, peer: Rank) -> Rank {
        let leaf = |rank: Rank| match self.swapped {
            Some((a, b)) if rank == a => b,
            Some((a, b)) if rank == b => a,
            _ => rank,
        };
        match self.swapped {
            Some(_) => leaf(Rank(leaf(rank).0 ^ rank.0 ^ peer.0)),
            None => peer,
        }
    }
}

/// A link of a rank that is slow itself: what it takes longer is not time that it waits for its peer.
struct SlowLink {
    link: Box<dyn TensorLink>,
    delay: Duration,
}

impl TensorLink for SlowLink {
    fn send(&mut self, message: &[u8]) -> Result<(), LinkError> {
        std::thread::sleep(self.delay);
        self.link.send(message)
    }

    fn recv(&mut self, message: &mut [u8]) -> Result<(), LinkError> {
        self.link.recv(message)
    }

    fn bytes_sent(&self) -> u64 {
        self.link.bytes_sent()
    }

    fn waited(&self) -> Duration {
        self.link.waited()
    }

    fn kind(&self) -> &'static str {
        self.link.kind()
    }
}

#[async_trait]
impl LinkFactory for LocalLinks {
    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    async fn connect(
        &self,
        _gang: &Gang,
        rank: Rank,
        peers: &[Rank],
        purpose: LinkPurpose,
    ) -> Result<Links, LinkError> {
        Ok(self.take(rank, peers, purpose))
    }
}
