//! The environment: `KVORUM_` and a setting's name in upper snake case. Empty variables count as unset.

use super::Assignment;
use super::settings::TABLE;
use crate::failure::Failure;
use crate::start::Variables;

/// What our variables begin with.
const PREFIX: &str = "KVORUM_";
/// Variables of other parts of the program.
const ELSEWHERE: [&str; 2] = ["KVORUM_CONFIG", "KVORUM_ENDPOINTS"];

/// What the environment says.
pub(super) struct Environment {
    pub(super) assignments: Vec<Assignment>,
    pub(super) warnings: Vec<String>,
}

/// The variable of a setting.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('-', "_").to_ascii_uppercase())
}

pub(super) fn read(variables: &Variables) -> Result<Environment, Failure> {
    let mut environment = Environment {
        assignments: Vec::new(),
        warnings: Vec::new(),
    };
    for given in variables.beginning(&[PREFIX]) {
        let name = given.name.as_str();
        if ELSEWHERE.contains(&name) || is_injected(name, &given.raw().to_string_lossy()) {
            continue;
        }
        let Some(setting) = TABLE.iter().find(|setting| variable(setting.key) == name) else {
            environment.warnings.push(format!(
                "unknown variable {name} is ignored; `kvorum config` lists the known ones"
            ));
            continue;
        };
        environment.assignments.push(Assignment {
            key: setting.key,
            value: given.text()?.to_owned(),
            origin: given.origin.clone(),
        });
    }
    Ok(environment)
}

/// Whether Kubernetes sets this variable for a service whose name begins with `kvorum`.
fn is_injected(name: &str, value: &str) -> bool {
    let rest = &name[PREFIX.len()..];
    match rest {
        "PORT" => value.starts_with("tcp://") || value.starts_with("udp://"),
        "SERVICE_HOST" => true,
        _ => rest.ends_with("_SERVICE_HOST") || rest.contains("_PORT") || rest.starts_with("PORT_"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::start::EnvFile;

    #[test]
    fn no_setting_looks_like_an_injected_variable() {
        for setting in TABLE {
            let name = variable(setting.key);
            assert!(!is_injected(&name, "tcp://10.0.0.1:2379"), "{name}");
            assert!(!ELSEWHERE.contains(&name.as_str()), "{name}");
        }
    }

    #[test]
    fn kubernetes_is_ignored_and_strangers_are_warned_of() {
        let variables = [
            ("KVORUM_SERVICE_HOST", "10.0.0.1"),
            ("KVORUM_CLIENT_SERVICE_HOST", "10.0.0.1"),
            ("KVORUM_SERVICE_PORT", "2379"),
            ("KVORUM_CLIENT_SERVICE_PORT_GRPC", "2379"),
            ("KVORUM_PORT", "tcp://10.0.0.1:2379"),
            ("KVORUM_PORT_2379_TCP_ADDR", "10.0.0.1"),
            ("KVORUM_ENDPOINTS", "a:1"),
            ("KVORUM_NAME", ""),
            ("KVORUM_DATA_DIR", "/d"),
            ("KVORUM_DATADIR", "/d"),
            ("OTHER", "x"),
        ];
        let variables = variables.map(|(k, v)| (k.into(), v.into()));
        let variables = Variables::read(variables, EnvFile::None, Path::new(".")).unwrap();
        let environment = read(&variables).unwrap();
        let keys: Vec<&str> = environment.assignments.iter().map(|a| a.key).collect();
        assert_eq!(keys, ["data-dir"]);
        assert_eq!(environment.warnings.len(), 1);
        assert!(environment.warnings[0].contains("KVORUM_DATADIR"));
    }
}
