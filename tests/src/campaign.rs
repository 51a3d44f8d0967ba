//! How campaigns, test programs without a test runner, tell what came of them: in the words of the
//! usual runner, which the developer tool counts.

use std::process::ExitCode;

use crate::Result;

/// Tells what came of a campaign: all that is wrong, or that nothing was to be done, which is none.
pub fn tell(came: Result<Option<Vec<String>>>) -> ExitCode {
    let (passed, faults) = match came {
        Ok(None) => (0, String::new()),
        Ok(Some(faults)) => (u8::from(faults.is_empty()), faults.join("\n")),
        Err(error) => (0, error.to_string()),
    };
    if faults.is_empty() {
        println!("test result: ok. {passed} passed; 0 failed; 0 ignored");
        ExitCode::SUCCESS
    } else {
        println!("{faults}\ntest result: FAILED. 0 passed; 1 failed; 0 ignored");
        ExitCode::FAILURE
    }
}
