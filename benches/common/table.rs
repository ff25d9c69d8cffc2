//! The table that the benches print: measured values and their bounds.

/// Bound of a measured value.
pub(crate) struct Row {
    name: String,
    value: f64,
    must: f64,
    aim: f64,
    pub(crate) note: String,
}

pub(crate) fn row(name: impl Into<String>, value: f64, must: f64, aim: f64, note: String) -> Row {
    Row { name: name.into(), value, must, aim, note }
}

/// Prints the rows; whether one misses what must hold.
pub(crate) fn print(rows: &[Row]) -> bool {
    println!("{:<62} {:>9} {:>7} {:>7}      values", "", "measured", "must", "aim");
    for row in rows {
        let verdict = if row.value <= row.aim {
            "aim "
        } else if row.value <= row.must {
            "must"
        } else {
            "MISS"
        };
        println!(
            "{:<62} {:>9.2} {:>7.2} {:>7.2} {verdict} {}",
            row.name, row.value, row.must, row.aim, row.note
        );
    }
    rows.iter().any(|row| row.value > row.must)
}

pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
