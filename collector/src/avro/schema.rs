//! The schema that stands in every file, and the check that a file to be read has it.
//!
//! Writers differ in white space, attribute order and defaults; what decides how bytes are
//! read is the shape: kinds, full names, fields and their order. Two schemas are equal here if
//! their shapes are.

use std::fmt::Write;
use std::sync::LazyLock;

use serde_json::Value;

/// SysFlow's schema, version 5, as its project publishes it.
pub(crate) const TEXT: &str = include_str!("../SysFlow.avsc");

static SHAPE: LazyLock<Option<String>> = LazyLock::new(|| shape_of(TEXT));

/// Whether a file with this schema text holds version 5 records.
pub(crate) fn is_version_5(text: &str) -> bool {
    let shape = shape_of(text);
    shape.is_some() && shape == *SHAPE
}

fn shape_of(text: &str) -> Option<String> {
    let schema: Value = serde_json::from_str(text).ok()?;
    let mut shape = String::new();
    append_shape(&mut shape, &schema, "")?;
    Some(shape)
}

/// Appends the shape of `schema`; none if it is not one. Nesting is bounded by the JSON
/// parser's own limit.
fn append_shape(shape: &mut String, schema: &Value, namespace: &str) -> Option<()> {
    match schema {
        Value::String(name) => shape.push_str(&full_name(name, namespace)),
        Value::Array(branches) => {
            shape.push('[');
            for branch in branches {
                append_shape(shape, branch, namespace)?;
                shape.push(',');
            }
            shape.push(']');
        }
        Value::Object(object) => {
            let kind = object.get("type")?;
            let Some(kind) = kind.as_str() else {
                return append_shape(shape, kind, namespace);
            };
            let namespace = object.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
            let name = object.get("name").and_then(Value::as_str).unwrap_or_default();
            match kind {
                "record" => {
                    let _ = write!(shape, "record {}{{", full_name(name, namespace));
                    for field in object.get("fields")?.as_array()? {
                        let _ = write!(shape, "{}:", field.get("name")?.as_str()?);
                        append_shape(shape, field.get("type")?, namespace)?;
                        shape.push(';');
                    }
                    shape.push('}');
                }
                "enum" => {
                    let symbols = object.get("symbols")?.as_array()?;
                    let _ = write!(shape, "enum {} {symbols:?}", full_name(name, namespace));
                }
                "fixed" => {
                    let size = object.get("size")?.as_u64()?;
                    let _ = write!(shape, "fixed {} {size}", full_name(name, namespace));
                }
                "array" => {
                    shape.push_str("array ");
                    append_shape(shape, object.get("items")?, namespace)?;
                }
                "map" => {
                    shape.push_str("map ");
                    append_shape(shape, object.get("values")?, namespace)?;
                }
                primitive => shape.push_str(&full_name(primitive, namespace)),
            }
        }
        _ => return None,
    }
    Some(())
}

fn full_name(name: &str, namespace: &str) -> String {
    const PRIMITIVES: [&str; 8] =
        ["null", "boolean", "int", "long", "float", "double", "bytes", "string"];
    if name.contains('.') || namespace.is_empty() || PRIMITIVES.contains(&name) {
        name.to_owned()
    } else {
        format!("{namespace}.{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_defaults_and_logical_types_do_not_matter() {
        let mut schema: Value = serde_json::from_str(TEXT).unwrap();
        let header = &mut schema["fields"][0]["type"][0]["fields"];
        header[0].as_object_mut().unwrap().remove("default");
        assert!(is_version_5(&schema.to_string()));
    }

    #[test]
    fn a_missing_field_and_another_order_matter() {
        let mut schema: Value = serde_json::from_str(TEXT).unwrap();
        schema["fields"][0]["type"][2]["fields"].as_array_mut().unwrap().pop();
        assert!(!is_version_5(&schema.to_string()));
        let mut schema: Value = serde_json::from_str(TEXT).unwrap();
        schema["fields"][0]["type"].as_array_mut().unwrap().swap(1, 2);
        assert!(!is_version_5(&schema.to_string()));
        assert!(!is_version_5("{}"));
        assert!(!is_version_5("not json"));
    }
}
