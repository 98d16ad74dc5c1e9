//! Simplified or traditional, by characters that only one of the two has.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Common simplified characters with their traditional counterparts; none of either is usual in
/// the other form (so no 后, 里, 面, 只, 系, which stand in both).
const PAIRS: &str = "这這个個们們来來说說时時国國对對会會发發经經学學动動过過还還为為没沒业業产產电電开開关關\
    门門问問间間见見现現让讓认認识識论論设設计計记記许許语語话話请請读讀谁誰调調该該车車轨軌转轉软軟轻輕较較输輸\
    边邊达達运運进進远遠连連选選适適递遞钱錢银銀铁鐵错錯长長队隊阳陽阴陰际際陆陸难難页頁项項顺順须須预預领領频頻题題\
    颜顏风風飞飛马馬验驗鱼魚鸟鳥黄黃齐齊龙龍龟龜东東丝絲两兩严嚴丧喪丰豐临臨举舉义義乐樂习習书書买買乱亂争爭亏虧亚亞\
    亿億仅僅从從仓倉仪儀价價众眾优優伟偉传傳伤傷体體余餘侧側侦偵偿償储儲儿兒党黨兰蘭兴興养養内內册冊写寫军軍农農决決况況\
    净淨减減凤鳳击擊创創删刪别別则則刚剛剧劇劝勸办辦务務励勵劳勞势勢区區医醫华華单單卖賣卫衛厂廠厅廳历歷压壓县縣参參双雙\
    变變叶葉号號听聽启啟员員响響团團园園围圍图圖圆圓圣聖场場块塊坏壞坚堅报報声聲处處备備复復头頭夺奪奖獎妇婦妈媽娱娛孙孫\
    宁寧实實审審宽寬宝寶寻尋导導将將尔爾尝嘗层層岁歲岛島币幣师師带帶帮幫广廣应應库庫废廢张張强強归歸当當录錄彻徹径徑\
    态態总總恋戀恶惡战戰户戶执執扩擴扫掃扬揚护護担擔拟擬拥擁择擇挥揮据據换換数數断斷无無旧舊显顯术術机機杀殺权權条條\
    极極构構标標树樹样樣桥橋检檢楼樓欢歡气氣汉漢汤湯浅淺测測济濟浏瀏灭滅灯燈灵靈炉爐点點热熱爱愛牵牽状狀独獨";

/// `zh-Hant` where traditional characters outnumber simplified ones, else `zh-Hans`.
pub(super) fn form(text: &str) -> &'static str {
    let mut balance = 0_i64;
    for character in text.chars() {
        balance += i64::from(weight(character));
    }
    if balance > 0 { "zh-Hant" } else { "zh-Hans" }
}

/// 1 for a traditional character, -1 for a simplified one, 0 for any other.
fn weight(character: char) -> i8 {
    static WEIGHTS: LazyLock<HashMap<char, i8>> = LazyLock::new(|| {
        let mut weights = HashMap::new();
        let mut characters = PAIRS.chars();
        while let (Some(simplified), Some(traditional)) = (characters.next(), characters.next()) {
            weights.insert(simplified, -1);
            weights.insert(traditional, 1);
        }
        weights
    });
    WEIGHTS.get(&character).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_simplified_then_traditional() {
        let characters: Vec<char> = PAIRS.chars().collect();
        assert_eq!(characters.len() % 2, 0);
        assert_eq!((weight('这'), weight('這'), weight('的')), (-1, 1, 0));
        assert_eq!((weight('独'), weight('獨')), (-1, 1));
    }
}
