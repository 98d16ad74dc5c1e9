//! Which language a text is in, as a BCP 47 tag: `en`, `zh-Hans`, `zh-Hant`, `ja`, ...; `und` where
//! nobody can say.
//!
//! Chinese is told by its script, since Han characters without kana are Chinese whatever trigrams
//! say, and its form by characters that exist in one form only. Everything else is `whatlang`'s.

mod chinese;
mod tags;

/// A language and how sure it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Language {
    /// BCP 47 tag.
    pub tag: &'static str,
    /// 0 to 1: for Chinese the share of Han among its words and characters, else the detector's own measure.
    pub confidence: f64,
}

/// Whether the tag means Chinese in either form.
pub fn is_chinese(tag: &str) -> bool {
    tag == "zh" || tag.starts_with("zh-")
}

/// Characters of text that are looked at: enough to be sure, little enough for long books.
const CHARACTERS_MAX: usize = 20_000;

/// Han characters a Latin word, roughly equal in meaning carried.
const HAN_A_WORD: f64 = 1.5;

/// Above this share of Han among all words a text is Chinese; technical text has many Latin words.
const HAN_SHARE_MIN: f64 = 0.3;

/// Above this share of kana among Han and kana a text is Japanese.
const KANA_SHARE_MIN: f64 = 0.05;

/// Tells the language of `text`.
pub fn identify(text: &str) -> Language {
    let end = text.char_indices().nth(CHARACTERS_MAX).map_or(text.len(), |(at, _)| at);
    let text = &text[..end];
    let counts = Counts::of(text);
    let share = counts.han_share();
    if share >= HAN_SHARE_MIN && counts.kana_share() < KANA_SHARE_MIN {
        return Language { tag: chinese::form(text), confidence: share };
    }
    match whatlang::detect(text) {
        // Han with kana below the share above, or a few Han in another script's text.
        Some(info) if info.lang() == whatlang::Lang::Cmn => {
            Language { tag: chinese::form(text), confidence: share.min(info.confidence()) }
        }
        Some(info) => Language { tag: tags::bcp47(info.lang()), confidence: info.confidence() },
        None => Language { tag: "und", confidence: 0.0 },
    }
}

/// What a text is written with.
#[derive(Default)]
struct Counts {
    han: usize,
    kana: usize,
    /// Words of other scripts.
    words: usize,
}

impl Counts {
    fn of(text: &str) -> Self {
        let mut counts = Self::default();
        let mut in_word = false;
        for character in text.chars() {
            let was_in_word = std::mem::take(&mut in_word);
            if is_han(character) {
                counts.han += 1;
            } else if matches!(character, '\u{3041}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}') {
                counts.kana += 1;
            } else if character.is_alphabetic() {
                in_word = true;
                counts.words += usize::from(!was_in_word);
            }
        }
        counts
    }

    fn han_share(&self) -> f64 {
        let han = self.han as f64 / HAN_A_WORD;
        if self.han == 0 { 0.0 } else { han / (han + self.words as f64 + self.kana as f64 / HAN_A_WORD) }
    }

    fn kana_share(&self) -> f64 {
        self.kana as f64 / (self.kana + self.han).max(1) as f64
    }
}

/// Whether the character is a Han ideograph.
pub fn is_han(character: char) -> bool {
    matches!(character, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}'
        | '\u{20000}'..='\u{323af}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_chinese_forms_japanese_and_english_apart() {
        let cases = [
            ("这个软件的发行版由志愿者维护，它们会在网络上发布。", "zh-Hans"),
            ("這個軟體的發行版由志願者維護，它們會在網路上發佈。", "zh-Hant"),
            ("使用 apt-get install 命令可以安装 package，详见 sources.list 文件。", "zh-Hans"),
            ("このソフトウェアはボランティアによって維持されています。", "ja"),
            ("The distribution is maintained by volunteers who publish it on the network.", "en"),
            ("Die Distribution wird von Freiwilligen gepflegt und im Netz veröffentlicht.", "de"),
            ("Дистрибутив поддерживается добровольцами и публикуется в сети.", "ru"),
            ("배포판은 자원 봉사자들이 관리하며 네트워크에 게시됩니다.", "ko"),
            ("12345 !!!", "und"),
            ("", "und"),
        ];
        for (text, tag) in cases {
            assert_eq!(identify(text).tag, tag, "{text}");
        }
    }

    #[test]
    fn english_with_a_few_han_is_english() {
        let text = "The word for language is 语言 in Mandarin, and it is written with two characters.";
        assert_eq!(identify(text).tag, "en");
    }
}
