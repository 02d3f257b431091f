//! Every route of the broker, in one table, and how a request finds its own.
//!
//! Answers nothing itself (server.rs does). What is not in the table does not exist, and what is
//! in it stands in `docs/openapi.json` as well (tests/broker/openapi.rs).

use hyper::Method;

/// What answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is named after its route below")]
pub enum Endpoint {
    ListJobs,
    SubmitJobs,
    ShowJob,
    Output,
    Why,
    Cancel,
    Rerun,
    Status,
    Executors,
    DeclareLost,
    Session,
    Audit,
    Facts,
    SyncHeads,
    SyncExport,
    SyncImport,
    Peers,
    Introduce,
    Events,
    Blob,
    OpenApi,
    Alive,
    Ready,
    Metrics,
}

/// One method on one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The method's word.
    pub method: &'static str,
    /// The path; a part in braces stands for any text.
    pub path: &'static str,
    /// What answers.
    pub endpoint: Endpoint,
}

const fn route(method: &'static str, path: &'static str, endpoint: Endpoint) -> Route {
    Route { method, path, endpoint }
}

/// What stands for a job, or for `JOB/7`, one element of an array.
const JOB: &str = "{id}";

/// All routes.
pub const ROUTES: &[Route] = &[
    route("GET", "/v1/jobs", Endpoint::ListJobs),
    route("POST", "/v1/jobs", Endpoint::SubmitJobs),
    route("GET", "/v1/jobs/{id}", Endpoint::ShowJob),
    route("GET", "/v1/jobs/{id}/output", Endpoint::Output),
    route("GET", "/v1/jobs/{id}/why", Endpoint::Why),
    route("POST", "/v1/jobs/{id}/cancel", Endpoint::Cancel),
    route("POST", "/v1/jobs/{id}/rerun", Endpoint::Rerun),
    route("GET", "/v1/status", Endpoint::Status),
    route("GET", "/v1/executors", Endpoint::Executors),
    route("POST", "/v1/executors/{executor}/lost", Endpoint::DeclareLost),
    route("POST", "/v1/executors/session", Endpoint::Session),
    route("GET", "/v1/audit", Endpoint::Audit),
    route("GET", "/v1/facts", Endpoint::Facts),
    route("GET", "/v1/sync", Endpoint::SyncHeads),
    route("POST", "/v1/sync/export", Endpoint::SyncExport),
    route("POST", "/v1/sync/import", Endpoint::SyncImport),
    route("GET", "/v1/peers", Endpoint::Peers),
    route("POST", "/v1/peers", Endpoint::Introduce),
    route("GET", "/v1/events", Endpoint::Events),
    route("GET", "/v1/blobs/{digest}", Endpoint::Blob),
    route("HEAD", "/v1/blobs/{digest}", Endpoint::Blob),
    route("PUT", "/v1/blobs/{digest}", Endpoint::Blob),
    route("GET", "/v1/openapi.json", Endpoint::OpenApi),
    route("GET", "/healthz", Endpoint::Alive),
    route("GET", "/readyz", Endpoint::Ready),
    route("GET", "/metrics", Endpoint::Metrics),
];

/// What there is for a method and a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A route, with the text that stands for the braces in its path (none has two).
    Route(&'static Route, &'a str),
    /// The path has other methods.
    OtherMethods(Vec<&'static str>),
    /// Nothing.
    Nothing,
}

/// Finds the route of a request.
#[must_use]
pub fn find<'a>(method: &Method, path: &'a str) -> Found<'a> {
    let mut others = vec![];
    for route in ROUTES {
        let Some(part) = fit(route.path, path) else { continue };
        if route.method == method.as_str() {
            return Found::Route(route, part);
        }
        others.push(route.method);
    }
    if others.is_empty() { Found::Nothing } else { Found::OtherMethods(others) }
}

/// The text that stands for the braces of a path, empty where it has none; `None` if it is
/// another path.
fn fit<'a>(known: &str, path: &'a str) -> Option<&'a str> {
    let (mut parts, mut found, mut at) = (path.split('/').peekable(), "", 0);
    for known in known.split('/') {
        let part = parts.next()?;
        let (begin, mut end) = (at, at + part.len());
        if known == JOB {
            // One element of an array: the job's id and a number.
            let number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            end += parts.next_if(number).map_or(0, |number| 1 + number.len());
        }
        if known.starts_with('{') {
            found = path.get(begin..end)?;
        } else if known != part {
            return None;
        }
        at = end + 1;
    }
    parts.next().is_none().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_find_their_routes() {
        let found = |method: Method, path| match find(&method, path) {
            Found::Route(route, part) => (Some(route.endpoint), part, vec![]),
            Found::OtherMethods(others) => (None, "", others),
            Found::Nothing => (None, "nothing", vec![]),
        };
        assert_eq!(found(Method::GET, "/v1/jobs/7/why"), (Some(Endpoint::Why), "7", vec![]));
        let element = (Some(Endpoint::Why), "a/7", vec![]);
        assert_eq!(found(Method::GET, "/v1/jobs/a/7/why"), element);
        let element = (Some(Endpoint::ShowJob), "a/12", vec![]);
        assert_eq!(found(Method::GET, "/v1/jobs/a/12"), element);
        assert_eq!(found(Method::GET, "/v1/jobs/why"), (Some(Endpoint::ShowJob), "why", vec![]));
        assert_eq!(found(Method::PUT, "/v1/jobs"), (None, "", vec!["GET", "POST"]));
        let lost = (Some(Endpoint::DeclareLost), "van-1", vec![]);
        assert_eq!(found(Method::POST, "/v1/executors/van-1/lost"), lost);
        for none in ["", "/", "/v1", "/v1/job", "/v1/jobs/a/b", "/v1/status/", "v1/status/x"] {
            assert_eq!(found(Method::GET, none), (None, "nothing", vec![]), "{none}");
        }
    }

    #[test]
    fn no_route_stands_twice_or_hides_another() {
        for (at, route) in ROUTES.iter().enumerate() {
            assert!(route.path.matches('{').count() <= 1, "{}", route.path);
            let hidden = |other: &Route| {
                other.method == route.method && fit(other.path, route.path).is_some()
            };
            assert!(!ROUTES[..at].iter().any(hidden), "{} {}", route.method, route.path);
        }
    }
}
