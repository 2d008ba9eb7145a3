//! Typed settings: one declaration gives the struct, its defaults, its checks and its JSON Schema.

use serde_json::{Map, Value};

/// What is wrong with a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where, as a JSON path: `$.waves[2].share`.
    pub path: String,
    /// What is wrong, for people.
    pub message: String,
}

impl Problem {
    /// A problem at a path.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

/// The settings of a policy; the policy type itself. Declared with [`settings!`](crate::settings).
pub trait Settings: Default {
    /// Reads a JSON text; an empty one and `null` are the defaults.
    ///
    /// # Errors
    /// All problems at once, each with its path.
    fn from_json(text: &str) -> Result<Self, Vec<Problem>>;

    /// The JSON Schema of the settings.
    fn schema() -> String;
}

/// A type that a setting can have: booleans, integers, texts, lists, options, and structs of [`settings!`](crate::settings).
pub trait Setting: Sized {
    /// Reads a value; reports what is wrong to `problems`.
    fn read(value: &Value, path: &str, problems: &mut Vec<Problem>) -> Option<Self>;

    /// Its JSON Schema, an object.
    fn schema() -> Value;

    /// The value as JSON, for the defaults in the schema.
    fn write(&self) -> Value;
}

fn wrong<T>(path: &str, expected: &str, found: &Value, problems: &mut Vec<Problem>) -> Option<T> {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    problems.push(Problem::new(path, format!("expected {expected}, found {found}")));
    None
}

/// A schema that only names a JSON type.
pub(crate) fn of_type(name: &str) -> Value {
    Value::Object(Map::from_iter([("type".to_owned(), Value::from(name))]))
}

impl Setting for bool {
    fn read(value: &Value, path: &str, problems: &mut Vec<Problem>) -> Option<Self> {
        value.as_bool().or_else(|| wrong(path, "true or false", value, problems))
    }
    fn schema() -> Value {
        of_type("boolean")
    }
    fn write(&self) -> Value {
        Value::from(*self)
    }
}

impl Setting for String {
    fn read(value: &Value, path: &str, problems: &mut Vec<Problem>) -> Option<Self> {
        value.as_str().map(str::to_owned).or_else(|| wrong(path, "a text", value, problems))
    }
    fn schema() -> Value {
        of_type("string")
    }
    fn write(&self) -> Value {
        Value::from(self.as_str())
    }
}

macro_rules! integers {
    ($($ty:ty),*) => {$(
        impl Setting for $ty {
            fn read(value: &Value, path: &str, problems: &mut Vec<Problem>) -> Option<Self> {
                let number = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
                match number.map(Self::try_from) {
                    Some(Ok(number)) => Some(number),
                    Some(Err(_)) => {
                        problems.push(Problem::new(path, format!("must be from {} to {}", Self::MIN, Self::MAX)));
                        None
                    }
                    None => wrong(path, "a whole number", value, problems),
                }
            }
            fn schema() -> Value {
                of_type("integer")
            }
            fn write(&self) -> Value {
                Value::from(*self)
            }
        }
    )*};
}

integers!(u8, u16, u32, u64, i32, i64);

impl<T: Setting> Setting for Vec<T> {
    fn read(value: &Value, path: &str, problems: &mut Vec<Problem>) -> Option<Self> {
        let Some(items) = value.as_array() else { return wrong(path, "a list", value, problems) };
        let read: Vec<_> =
            items.iter().enumerate().map(|(i, item)| T::read(item, &format!("{path}[{i}]"), problems)).collect();
        read.into_iter().collect()
    }
    fn schema() -> Value {
        let mut schema = Map::new();
        schema.insert("type".into(), "array".into());
        schema.insert("items".into(), T::schema());
        Value::Object(schema)
    }
    fn write(&self) -> Value {
        self.iter().map(Setting::write).collect()
    }
}

impl<T: Setting> Setting for Option<T> {
    fn read(value: &Value, path: &str, problems: &mut Vec<Problem>) -> Option<Self> {
        if value.is_null() { Some(None) } else { T::read(value, path, problems).map(Some) }
    }
    fn schema() -> Value {
        let mut schema = Map::new();
        schema.insert("anyOf".into(), Value::Array(vec![T::schema(), of_type("null")]));
        Value::Object(schema)
    }
    fn write(&self) -> Value {
        self.as_ref().map_or(Value::Null, Setting::write)
    }
}

/// Declares the settings of a policy; the struct is the policy.
///
/// Each field has a default, and after `=>` an inclusive range if it is a number. `check FUNCTION` behind the struct names a
/// `fn(&Self) -> Vec<Problem>` for what ranges cannot say. Unknown keys are problems.
///
/// ```
/// use clonegate_policy::prelude::*;
///
/// settings! {
///     /// Spreads a pool.
///     pub struct Spread {
///         /// Share of a pool that one datastore may hold, percent.
///         share_percent: u8 = 40 => 1..=100,
///         /// The label that names the failure domain of a datastore.
///         domain: String = "rack".to_owned(),
///     }
/// }
///
/// assert_eq!(Spread::from_json(r#"{"share_percent": 25}"#).unwrap().share_percent, 25);
/// let problems = Spread::from_json(r#"{"share_percent": 0, "domian": "row"}"#).unwrap_err();
/// assert_eq!(problems[0].path, "$.domian");
/// assert_eq!(problems[1].path, "$.share_percent");
/// ```
#[macro_export]
macro_rules! settings {
    (
        $(#[doc = $doc:literal])*
        $vis:vis struct $name:ident {
            $($(#[doc = $field_doc:literal])* $field:ident : $ty:ty = $default:expr $(=> $range:expr)?),* $(,)?
        }
        $(check $check:expr)?
    ) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        $vis struct $name {
            $($(#[doc = $field_doc])* pub $field: $ty,)*
        }

        impl ::core::default::Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $crate::Setting for $name {
            fn read(
                value: &$crate::__private::serde_json::Value,
                path: &str,
                problems: &mut ::std::vec::Vec<$crate::Problem>,
            ) -> ::core::option::Option<Self> {
                let _object = $crate::__object(value, path, &[$(stringify!($field)),*], problems)?;
                let _before = problems.len();
                #[allow(unused_mut, reason = "settings may have no fields and no bounds")]
                let mut settings = <Self as ::core::default::Default>::default();
                $(
                    if let Some(value) = _object.get(stringify!($field)) {
                        let path = ::std::format!("{path}.{}", stringify!($field));
                        if let Some(value) = <$ty as $crate::Setting>::read(value, &path, problems) {
                            $($crate::__in_range(&value, &$range, &path, problems);)?
                            settings.$field = value;
                        } else {
                            $($crate::__own_range(&$range, problems);)?
                        }
                    }
                )*
                $(
                    if problems.len() == _before {
                        let check: fn(&Self) -> ::std::vec::Vec<$crate::Problem> = $check;
                        problems.extend(check(&settings));
                    }
                )?
                Some(settings)
            }

            fn schema() -> $crate::__private::serde_json::Value {
                let _defaults = <Self as ::core::default::Default>::default();
                let mut _properties = $crate::__private::serde_json::Map::new();
                $({
                    #[allow(unused_mut, reason = "settings may have no fields and no bounds")]
                    let mut schema = <$ty as $crate::Setting>::schema();
                    $($crate::__bounds(&_defaults.$field, &$range, &mut schema);)?
                    schema["default"] = $crate::Setting::write(&_defaults.$field);
                    schema["description"] = $crate::__text(&[$($field_doc),*]);
                    _properties.insert(stringify!($field).into(), schema);
                })*
                $crate::__object_schema(_properties)
            }

            fn write(&self) -> $crate::__private::serde_json::Value {
                let mut _object = $crate::__private::serde_json::Map::new();
                $(_object.insert(stringify!($field).into(), $crate::Setting::write(&self.$field));)*
                $crate::__private::serde_json::Value::Object(_object)
            }
        }

        impl $crate::Settings for $name {
            fn from_json(text: &str) -> ::core::result::Result<Self, ::std::vec::Vec<$crate::Problem>> {
                $crate::__from_json(text)
            }

            fn schema() -> ::std::string::String {
                <Self as $crate::Setting>::schema().to_string()
            }
        }
    };
}

#[doc(hidden)]
pub fn __from_json<T: Setting + Default>(text: &str) -> Result<T, Vec<Problem>> {
    let text = text.trim();
    if text.is_empty() || text == "null" || text == "{}" {
        return Ok(T::default());
    }
    let value = serde_json::from_str(text).map_err(|e| vec![Problem::new("$", format!("not JSON: {e}"))])?;
    let mut problems = Vec::new();
    match T::read(&value, "$", &mut problems) {
        Some(settings) if problems.is_empty() => Ok(settings),
        _ => Err(problems),
    }
}

#[doc(hidden)]
pub fn __object<'a>(
    value: &'a Value,
    path: &str,
    known: &[&str],
    problems: &mut Vec<Problem>,
) -> Option<&'a Map<String, Value>> {
    let Some(object) = value.as_object() else { return wrong(path, "an object", value, problems) };
    for key in object.keys().filter(|key| !known.contains(&key.as_str())) {
        let known = if known.is_empty() { "there are none".into() } else { format!("known: {}", known.join(", ")) };
        problems.push(Problem::new(format!("{path}.{key}"), format!("no such setting ({known})")));
    }
    Some(object)
}

#[doc(hidden)]
pub fn __in_range<T: PartialOrd + std::fmt::Display>(
    value: &T,
    range: &std::ops::RangeInclusive<T>,
    path: &str,
    problems: &mut Vec<Problem>,
) {
    if !range.contains(value) {
        problems.push(Problem::new(path, format!("must be from {} to {}, not {value}", range.start(), range.end())));
    }
}

/// A number that its type cannot hold is outside the setting's own range, which is the one to name.
#[doc(hidden)]
pub fn __own_range<T: std::fmt::Display>(range: &std::ops::RangeInclusive<T>, problems: &mut [Problem]) {
    if let Some(last) = problems.last_mut().filter(|p| p.message.starts_with("must be from ")) {
        last.message = format!("must be from {} to {}", range.start(), range.end());
    }
}

#[doc(hidden)]
pub fn __text(lines: &[&str]) -> Value {
    lines.concat().trim().into()
}

#[doc(hidden)]
pub fn __bounds<T: Setting>(_of: &T, range: &std::ops::RangeInclusive<T>, schema: &mut Value) {
    schema["minimum"] = range.start().write();
    schema["maximum"] = range.end().write();
}

#[doc(hidden)]
pub fn __object_schema(properties: Map<String, Value>) -> Value {
    let mut schema = Map::new();
    schema.insert("type".into(), "object".into());
    schema.insert("additionalProperties".into(), false.into());
    schema.insert("properties".into(), Value::Object(properties));
    Value::Object(schema)
}

#[cfg(test)]
mod tests {
    use crate::prelude::*;

    settings! {
        struct Wave {
            /// Its label.
            name: String = String::new(),
            after_hours: u32 = 0 => 0..=720,
        }
    }

    settings! {
        struct Plan {
            waves: Vec<Wave> = Vec::new(),
            quiet: Option<bool> = None,
        }
        check |s: &Plan| if s.waves.len() > 2 { vec![Problem::new("$.waves", "at most 2")] } else { vec![] }
    }

    fn problems(json: &str) -> Vec<String> {
        Plan::from_json(json)
            .err()
            .unwrap_or_default()
            .into_iter()
            .map(|p| format!("{}: {}", p.path, p.message))
            .collect()
    }

    #[test]
    fn every_problem_is_named_by_its_json_path() {
        assert_eq!(
            problems(r#"{"waves": [{"name": "a"}, {"name": 7, "after_hours": 800}], "colour": 1}"#),
            [
                "$.colour: no such setting (known: waves, quiet)",
                "$.waves[1].name: expected a text, found a number",
                "$.waves[1].after_hours: must be from 0 to 720, not 800",
            ]
        );
        let far = problems(r#"{"waves": [{"after_hours": 5000000000}, {"after_hours": -1}]}"#);
        let says = |n: u32| format!("$.waves[{n}].after_hours: must be from 0 to 720");
        assert_eq!(far, [says(0), says(1)], "the range of the setting, not of its type");
        assert_eq!(problems("[]"), ["$: expected an object, found a list"]);
        assert_eq!(problems(r#"{"waves": [{}, {}, {}]}"#), ["$.waves: at most 2"]);
        assert_eq!(problems("{"), ["$: not JSON: EOF while parsing an object at line 1 column 1"]);
    }

    #[test]
    fn defaults_stand_for_what_is_not_said() {
        for text in ["", "null", "{}", "  {} "] {
            assert_eq!(Plan::from_json(text).unwrap(), Plan::default());
        }
        assert_eq!(Plan::from_json(r#"{"quiet": true}"#).unwrap().quiet, Some(true));
    }

    #[test]
    fn the_schema_says_types_bounds_defaults_and_texts() {
        let schema: serde_json::Value = serde_json::from_str(&<Plan as Settings>::schema()).unwrap();
        let wave = &schema["properties"]["waves"]["items"]["properties"];
        assert_eq!(wave["after_hours"]["maximum"], 720);
        assert_eq!(wave["name"]["description"], "Its label.");
        assert_eq!(schema["additionalProperties"], false);
    }
}
