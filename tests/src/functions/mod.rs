//! Cases of kind `function`: data in, data out.

mod dump;
mod rules;
mod xds;

use crate::corpus::Case;
use serde_json::Value;

/// Why a case gave no result.
#[derive(Debug)]
pub enum EvalError {
    /// The function is not built yet.
    Unsupported(String),
    /// The case cannot be read or evaluated.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for EvalError {
    fn from(e: anyhow::Error) -> Self {
        EvalError::Failed(e)
    }
}

/// What the implementation says to a case.
pub fn evaluate(case: &Case) -> Result<Value, EvalError> {
    let function = case.field("function");
    let rules: fn(&Case) -> anyhow::Result<Value> = match function {
        "from-rules" => rules::from_rules,
        "to-rules" => rules::to_rules,
        "single-item-rules" => rules::single_item_rules,
        "inbound-rules" => rules::inbound,
        "sort-to-entries" => rules::sort_to_entries,
        "resource-rules" => rules::resource,
        "matched-policies" => rules::matched,
        "matched-policies.from-rules" => rules::matched_from,
        "matched-policies.to-rules" => rules::matched_to,
        "matched-policies.gateway-rules" => rules::matched_gateway,
        "egress-matched-policies.from-rules" => rules::egress,
        "json-patch-diff" => return xds::json_patch_diff(case),
        "xds-part" => return xds::part(case),
        _ => return Err(EvalError::Unsupported(format!("function {function:?} of kind {:?} is not built yet", case.field("kind")))),
    };
    Ok(rules(case)?)
}
