//! The day that a template is told: [`Date`].

use std::str::FromStr;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Saturday", "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday"];

/// A day of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    year: u32,
    /// From 1.
    month: u32,
    /// From 1.
    day: u32,
}

impl FromStr for Date {
    type Err = String;

    /// Reads `2024-07-26`.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Vec<Option<u32>> = text.split('-').map(|part| part.parse().ok()).collect();
        match numbers[..] {
            [Some(year @ 1..=9999), Some(month @ 1..=12), Some(day @ 1..=31)] => {
                Ok(Self { year, month, day })
            }
            _ => Err(format!("`{text}` is no day; write one as 2024-07-26")),
        }
    }
}

impl Date {
    /// The day of a time, in seconds since 1970, in UTC (the algorithm `civil_from_days` of Hinnant, "chrono-Compatible
    /// Low-Level Date Algorithms").
    pub fn of_unix_seconds(seconds: u64) -> Self {
        let days = seconds / 86_400 + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = era * 400 + year_of_era + u64::from(month < 3);
        let day = day_of_year - (153 * shifted + 2) / 5 + 1;
        Self { year: year.min(9999) as u32, month: month as u32, day: day as u32 }
    }

    /// The day in the form that C's `strftime` describes. Times are those of midnight; what is no field stays as it is.
    pub fn format(self, form: &str) -> String {
        let mut out = String::new();
        let mut rest = form.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match rest.next() {
                Some('-') => match rest.next() {
                    Some(field) => out += self.field(field).trim_start_matches('0'),
                    None => out.push_str("%-"),
                },
                Some('%') => out.push('%'),
                Some(field) => out += &self.field(field),
                None => out.push('%'),
            }
        }
        out
    }

    fn field(self, field: char) -> String {
        let Self { year, month, day } = self;
        let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[self.weekday() as usize]);
        match field {
            'Y' => format!("{year:04}"),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name.chars().take(3).collect(),
            'A' => day_name.to_owned(),
            'a' => day_name.chars().take(3).collect(),
            'F' => format!("{year:04}-{month:02}-{day:02}"),
            'H' | 'M' | 'S' => "00".to_owned(),
            'I' => "12".to_owned(),
            'p' => "AM".to_owned(),
            other => format!("%{other}"),
        }
    }

    /// Days since a Saturday (Zeller 1887, "Kalender-Formeln").
    fn weekday(self) -> u32 {
        let Self { year, month, day } = self;
        let (year, month) = if month < 3 { (year - 1, month + 12) } else { (year, month) };
        (day + 13 * (month + 1) / 5 + year + year / 4 - year / 100 + year / 400) % 7
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_written_as_strftime_does() {
        let day: Date = "2024-07-06".parse().unwrap();
        assert_eq!(day.format("%d %b %Y"), "06 Jul 2024");
        assert_eq!(
            day.format("%A, %B %-d, %Y; %F %H:%M 100%% %q"),
            "Saturday, July 6, 2024; 2024-07-06 00:00 100% %q"
        );
        assert_eq!("2000-02-29".parse::<Date>().unwrap().format("%a %y"), "Tue 00");
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_720_223_999, "2024-07-05"),
            (1_720_224_000, "2024-07-06"),
        ] {
            assert_eq!(Date::of_unix_seconds(seconds).format("%F"), expected);
        }
        for wrong in ["", "2024-13-01", "2024-7", "26 Jul 2024", "0-1-1"] {
            assert!(wrong.parse::<Date>().is_err(), "{wrong}");
        }
    }
}
