//! JSON as a table of two columns: what, and how much.

use serde_json::Value;

/// One line per value, named by the way to it. Nulls and empty lists and objects are left out.
#[must_use]
pub fn render(value: &Value) -> String {
    let mut rows = Vec::new();
    collect(value, String::new(), &mut rows);
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

fn collect(value: &Value, name: String, rows: &mut Vec<(String, String)>) {
    let below = |part: String| {
        if name.is_empty() { part } else { format!("{name}.{part}") }
    };
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| collect(value, below(key.clone()), rows))
        }
        Value::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, value)| collect(value, below(index.to_string()), rows));
        }
        Value::String(text) => rows.push((name, text.clone())),
        Value::Bool(_) | Value::Number(_) => rows.push((name, value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_named_by_the_way_to_them() {
        let value =
            json!({"id": "i-1", "drives": [{"drive_id": "root", "socket": null}], "none": [], "n": 4});
        assert_eq!(render(&value), "drives.0.drive_id  root\nid                 i-1\nn                  4\n");
        assert_eq!(render(&json!(null)), "");
    }
}
