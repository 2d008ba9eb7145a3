//! The SDK's types read and write the JSON of the gateway's own: `golden/advice.json` is made by the gateway's types and holds
//! every case of every question and answer (`gateway/policy-host/tests/advice_json.rs`).

use clonegate_policy::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What a value becomes when it passes through a type of the SDK.
fn through<T: DeserializeOwned + Serialize>(value: &Value) -> Value {
    let read: T = serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{e}: {value}"));
    serde_json::to_value(read).unwrap()
}

#[test]
fn every_question_and_answer_of_the_gateway_passes_through_the_sdk_unchanged() {
    let golden: Value = serde_json::from_str(include_str!("golden/advice.json")).unwrap();
    assert_eq!(through::<Context>(&golden["context"]), golden["context"]);
    let questions = golden["questions"].as_array().unwrap();
    for question in questions {
        let request = &question["request"];
        let same = match question["slot"].as_str().unwrap() {
            "placement" => through::<PlacementRequest>(request),
            "rollover" => through::<RolloverRequest>(request),
            _ => through::<ResetRequest>(request),
        };
        assert_eq!(same, *request);
        if let Some(inventory) = question.get("inventory") {
            assert_eq!(through::<Inventory>(inventory), *inventory);
        }
    }
    let answers = golden["answers"].as_array().unwrap();
    for answer in answers {
        let (slot, verdict) = answer.as_object().unwrap().iter().next().unwrap();
        let same = match slot.as_str() {
            "placement" => through::<PlacementVerdict>(verdict),
            "rollover" => through::<RolloverVerdict>(verdict),
            _ => through::<ResetVerdict>(verdict),
        };
        assert_eq!(same, *verdict);
    }
    assert!(questions.len() >= 12 && answers.len() >= 15, "{} questions, {} answers", questions.len(), answers.len());
}
