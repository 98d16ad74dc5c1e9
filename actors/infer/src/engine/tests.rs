//! Tests of `engine`.

use super::*;
use crate::message::{FinishReason, Prompt, TokenPiece};
use crate::testing::{END_TOKEN, ToyDecoder, codec, request};

fn limits(kv_blocks: usize) -> Limits {
    Limits { kv_blocks, block_tokens: 4, batch_max: 4, waiting_max: 16, step_tokens_max: 7 }
}

struct Rig {
    engine: Engine<ToyDecoder>,
    text: Arc<TextCodec>,
}

impl Rig {
    fn new(decoder: ToyDecoder) -> Self {
        let text = Arc::new(codec());
        let limits = limits(decoder.blocks);
        Self { engine: Engine::new(decoder, Arc::clone(&text), limits, 0), text }
    }

    fn submit(&mut self, request: GenerateRequest) -> mpsc::Receiver<TokenEvent> {
        let (events, receiver) = mpsc::channel(1024);
        let prompt = self.text.encode(&request.prompt).unwrap();
        self.engine.submit(Job { request, prompt, events });
        receiver
    }

    fn run(&mut self) {
        while self.engine.step().unwrap() {}
    }

    fn answer(&mut self, request: GenerateRequest) -> Answer {
        let mut receiver = self.submit(request);
        self.run();
        Answer::of(&mut receiver)
    }
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Answer {
    prompt: Vec<u32>,
    echo: Vec<TokenPiece>,
    tokens: Vec<TokenPiece>,
    tail: String,
    reason: Option<FinishReason>,
    error: Option<ReplicaError>,
}

impl Answer {
    fn of(receiver: &mut mpsc::Receiver<TokenEvent>) -> Self {
        let mut answer = Self::default();
        while let Ok(event) = receiver.try_recv() {
            assert!(answer.reason.is_none() && answer.error.is_none(), "nothing follows the end");
            match event {
                TokenEvent::Started { prompt_tokens } => answer.prompt = prompt_tokens,
                TokenEvent::Echo(pieces) => answer.echo.extend(pieces),
                TokenEvent::Token(piece) => answer.tokens.push(piece),
                TokenEvent::Finished { reason, text } => (answer.reason, answer.tail) = (Some(reason), text),
                TokenEvent::Failed(error) => answer.error = Some(error),
                TokenEvent::Alive => panic!("the engine itself gives no signs of life"),
            }
        }
        answer
    }

    fn text(&self) -> String {
        self.tokens.iter().map(|piece| piece.text.as_str()).collect::<String>() + &self.tail
    }

    fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|piece| piece.token).collect()
    }
}

#[test]
fn an_answer_does_not_depend_on_the_batch() {
    let prompts = ["a", "a longer prompt", "今天天气很好", "zz", "another one", "b"];
    let seeded = |index: usize, prompt: &str| {
        let mut request = request(prompt);
        request.sampling.seed = index as u64;
        request
    };
    let alone: Vec<Answer> = (0..)
        .zip(prompts)
        .map(|(index, prompt)| Rig::new(ToyDecoder::default()).answer(seeded(index, prompt)))
        .collect();
    assert!(alone.iter().all(|answer| answer.tokens.len() == 12));
    // Ten blocks are too few for four sequences: some are preempted and computed again.
    for blocks in [32, 10, 8] {
        let mut rig = Rig::new(ToyDecoder { blocks, ..ToyDecoder::default() });
        let mut receivers = Vec::new();
        for (index, prompt) in prompts.iter().enumerate() {
            receivers.push(rig.submit(seeded(index, prompt)));
            rig.engine.step().unwrap();
        }
        rig.run();
        let together: Vec<Answer> = receivers.iter_mut().map(Answer::of).collect();
        assert_eq!(together, alone, "{blocks} blocks");
        let load = rig.engine.load();
        assert_eq!(load, Load { blocks, preempted: load.preempted, ..Load::default() });
        assert_eq!(load.preempted > 0, blocks < 32, "{blocks} blocks: {load:?}");
    }
}

#[test]
fn another_replica_continues_at_the_same_character() {
    let mut whole_request = request("今天 weather");
    whole_request.sampling.frequency_penalty = 0.5;
    whole_request.output_tokens_max = Some(24);
    // A stop string of one character that the undisturbed answer has late: found by running it once.
    let undisturbed = Rig::new(ToyDecoder::default()).answer(whole_request.clone());
    let late = undisturbed.text().chars().rev().nth(2).unwrap().to_string();
    for stop in [Vec::new(), vec!["\u{0}never".to_owned(), late]] {
        whole_request.stop = stop;
        let whole = Rig::new(ToyDecoder::default()).answer(whole_request.clone());
        for cut in 0..=whole.tokens.len() {
            let before: String = whole.tokens[..cut].iter().map(|piece| piece.text.as_str()).collect();
            let resumed_request =
                GenerateRequest { emitted: whole.ids()[..cut].to_vec(), ..whole_request.clone() };
            let resumed = Rig::new(ToyDecoder::default()).answer(resumed_request);
            assert_eq!(resumed.ids(), whole.ids()[cut..]);
            assert_eq!(before + &resumed.text(), whole.text());
            assert_eq!(resumed.reason, whole.reason);
        }
    }
}

#[test]
fn echo_scores_every_token_of_the_prompt_but_the_first() {
    let mut scored = request("a prompt of several chunks");
    (scored.echo, scored.logprobs, scored.output_tokens_max) = (true, Some(2), Some(1));
    scored.sampling.temperature = 0.0;
    let answer = Rig::new(ToyDecoder::default()).answer(scored.clone());
    assert_eq!(answer.echo.len(), answer.prompt.len());
    assert_eq!(
        answer.echo.iter().map(|piece| piece.text.as_str()).collect::<String>(),
        "a prompt of several chunks"
    );
    assert!(answer.echo[0].score.is_none() && answer.echo[1..].iter().all(|piece| piece.score.is_some()));
    let best = &answer.tokens[0].score.as_ref().unwrap();
    assert_eq!(best.top[0].logprob.to_bits(), best.logprob.to_bits(), "greedy takes the best");
    assert_eq!(best.top.len(), 2);
    // The score of a prompt's token is that of the same token as an answer.
    let mut shorter = scored.clone();
    let cut = 9;
    shorter.prompt = Prompt::Tokens(answer.prompt[..cut].to_vec());
    shorter.logprobs = Some(0);
    let shorter_row = Rig::new(ToyDecoder::default()).answer(shorter).tokens.remove(0);
    if shorter_row.token == answer.prompt[cut] {
        assert_eq!(shorter_row.score.unwrap().logprob, answer.echo[cut].score.as_ref().unwrap().logprob);
    } else {
        assert!(shorter_row.score.unwrap().logprob >= answer.echo[cut].score.as_ref().unwrap().logprob);
    }
    // A preempted prompt is computed twice and echoed once.
    let mut rig = Rig::new(ToyDecoder { blocks: 8, ..ToyDecoder::default() });
    let mut older = rig.submit(GenerateRequest { output_tokens_max: Some(25), ..request("oldest") });
    rig.engine.step().unwrap();
    let mut receiver = rig.submit(scored);
    rig.run();
    assert_eq!(Answer::of(&mut older).tokens.len(), 25);
    assert_eq!(Answer::of(&mut receiver), answer);
}

#[test]
fn the_end_token_and_the_limits_end_an_answer() {
    // A prompt whose most likely next token ends the text, found by trying.
    let ends = (0..20_000_u32).find_map(|number| {
        let mut asked = request(&number.to_string());
        (asked.sampling.temperature, asked.ignore_eos, asked.output_tokens_max) = (0.0, false, Some(1));
        let answer = Rig::new(ToyDecoder::default()).answer(asked.clone());
        (answer.ids() == [END_TOKEN]).then_some((asked, answer))
    });
    let (asked, answer) = ends.unwrap();
    assert_eq!((answer.reason, answer.text().as_str()), (Some(FinishReason::Stop), ""));
    let ignored = GenerateRequest { ignore_eos: true, output_tokens_max: Some(5), ..asked };
    let answer = Rig::new(ToyDecoder::default()).answer(ignored);
    assert_eq!((answer.tokens.len(), answer.reason), (5, Some(FinishReason::Length)));
    let endless = GenerateRequest { output_tokens_max: None, ..request("abcd") };
    assert_eq!(Rig::new(ToyDecoder::default()).answer(endless).tokens.len(), 60);
    let nothing = GenerateRequest { output_tokens_max: Some(0), echo: true, ..request("abcd") };
    let answer = Rig::new(ToyDecoder::default()).answer(nothing);
    assert_eq!((answer.tokens.len(), answer.echo.len()), (0, 4));
}

#[test]
fn refuses_what_the_model_cannot_read() {
    let refused = |prompt: Prompt| match Rig::new(ToyDecoder::default())
        .answer(GenerateRequest { prompt, ..request("") })
        .error
    {
        Some(ReplicaError::Invalid { message, .. }) => message,
        other => panic!("{other:?}"),
    };
    assert!(refused(Prompt::Tokens(vec![])).contains("no tokens"));
    assert!(refused(Prompt::Tokens(vec![9999])).contains("vocabulary"));
    assert!(refused(Prompt::Tokens(vec![1; 64])).contains("context"));
}

#[test]
fn a_gone_client_frees_its_blocks_within_a_step() {
    let mut rig = Rig::new(ToyDecoder::default());
    for round in 0..10_000_u64 {
        let mut asked = request("gone soon");
        asked.sampling.seed = round;
        let receiver = rig.submit(asked);
        rig.engine.step().unwrap();
        if round % 3 == 0 {
            rig.engine.step().unwrap();
        }
        drop(receiver);
        rig.engine.step().unwrap();
        assert_eq!(rig.engine.load(), Load { blocks: 32, ..Load::default() });
    }
}

#[test]
fn a_client_that_does_not_read_holds_up_only_itself() {
    let mut rig = Rig::new(ToyDecoder::default());
    let (events, mut slow) = mpsc::channel(EVENTS_PER_STEP + 1);
    let slow_request = request("slow");
    let prompt = rig.text.encode(&slow_request.prompt).unwrap();
    rig.engine.submit(Job { request: slow_request.clone(), prompt, events });
    let mut fast = rig.submit(request("fast"));
    rig.run();
    assert_eq!(Answer::of(&mut fast).tokens.len(), 12);
    let (mut slow_tokens, expected) = (Vec::new(), Rig::new(ToyDecoder::default()).answer(slow_request));
    while let Ok(event) = slow.try_recv() {
        if let TokenEvent::Token(piece) = event {
            slow_tokens.push(piece);
        }
        rig.run();
    }
    assert_eq!(slow_tokens, expected.tokens);
}

#[test]
fn a_failing_model_fails_every_answer() {
    let mut rig = Rig::new(ToyDecoder { calls_left: 3, ..ToyDecoder::default() });
    let mut receiver = rig.submit(request("a"));
    let error = std::iter::repeat_with(|| rig.engine.step()).find_map(Result::err).unwrap();
    rig.engine.fail_all(&ReplicaError::Lost(error.to_string()));
    let answer = Answer::of(&mut receiver);
    assert_eq!(answer.tokens.len(), 3);
    assert!(matches!(answer.error, Some(ReplicaError::Lost(_))), "{answer:?}");
}
