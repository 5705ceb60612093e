//! One request from its head to the head of its answer, through the layers in order.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, COOKIE, HOST, HeaderValue, SET_COOKIE};
use http::request::Parts;
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::time::timeout_at;

use super::admit::Patience;
use super::answer::{self, About, Form, Refusal};
use super::body::{Bounds, Fault, Passage, RequestBody, ResponseBody};
use super::connection::Connection;
use super::cookie::{self, Presented};
use super::counters::Counter;
use super::entry::Entry;
use super::h2::{self, Bootstrap};
use super::headers::Client;
use super::place::{Place, Visitor};
use super::session;
use super::streams::Tunnelled;
use super::told::{Decision, Outcome, Told};
use super::upstream::{Arriving, Introduction, On, SendError};
use super::{check, headers, learn, trust, tunnel};
use crate::access::Fate;
use crate::config::{self, Affinity};
use crate::introduction::introduce;
use crate::routing::{AppRoute, Found, Lost, Notice};

/// Times that a request is placed at a worker.
const ATTEMPTS: u32 = 2;

pub async fn handle(connection: Arc<Connection>, mut request: Request<Incoming>) -> Response<ResponseBody> {
    let inner = &connection.proxy;
    inner.counters.add(Counter::Requests);
    let told = Told::begin(inner, &request);
    let on_upgrade = hyper::upgrade::on(&mut request);
    let (mut parts, body) = request.into_parts();
    let (method, accept) = (parts.method.clone(), parts.headers.get(ACCEPT).cloned());
    let is_h2 = parts.version == Version::HTTP_2;
    let bootstrap = if is_h2 { h2::normalise(&mut parts, !body.is_end_stream()) } else { Ok(None) };
    let introduced = connection.speaks_for_others.as_ref().map(|trusted| {
        let Client { address, is_secure, .. } = connection.client;
        trust::client(&parts.headers, address, is_secure, trusted)
    });
    let client = introduced.as_ref().unwrap_or(&connection.client);
    let number = inner.ids.number();
    let id = || client.id.clone().unwrap_or_else(|| inner.ids.value(number));
    let span = inner.spans.as_ref().and_then(|spans| {
        let is_believed = connection.speaks_for_others.is_some();
        spans.begin(&parts.method, &parts.headers, is_believed)
    });
    let mut entry = if inner.access.is_some() || span.is_some() {
        let version = if is_h2 { Version::HTTP_2 } else { parts.version };
        let who = (client.address, client.is_secure);
        Some(Entry::begin(inner.access.as_ref(), span, who, &parts, version, id()))
    } else {
        None
    };
    let arrived = bootstrap
        .map_err(|refusal| (None, refusal))
        .and_then(|bootstrap| Ok((arrive(&connection, client, &mut parts)?, bootstrap)));
    let app = match &arrived {
        Ok((arrival, _)) => Some(arrival.app),
        Err((app, _)) => *app,
    };
    let route = || app.and_then(|app| inner.route(app));
    if let Some(entry) = &mut entry {
        entry.app = route().map(|route| Arc::clone(&route.name));
    }
    let outcome = match arrived {
        Ok((arrival, bootstrap)) => {
            let upgrade = check::wants_upgrade(&parts).then_some(Upgrade { client: on_upgrade, bootstrap });
            let request = Request::from_parts(parts, body);
            forward(&connection, client, id(), request, upgrade, arrival, &mut entry).await
        }
        Err((_, refusal)) => Err(refusal),
    };
    let name = |route: &Option<Arc<AppRoute>>| route.as_ref().map_or("(none)".into(), |route| Arc::clone(&route.name));
    let (mut response, decision, refusal) = match outcome {
        Ok((response, decision)) => (response, Some(decision), None),
        Err(refusal) => {
            refusal.counter().inspect(|&counter| inner.counters.add(counter));
            let (route, id) = (route(), id());
            let about = About {
                app: &name(&route),
                page: route.as_ref().and_then(|route| route.http.error_page.as_deref()),
                request_id: &String::from_utf8_lossy(id.as_bytes()),
            };
            (refusal.response(&about, Form::of(&method, accept.as_ref())), None, Some(refusal))
        }
    };
    if is_h2 {
        h2::finish(&mut response);
    }
    // A tunnel has taken its own with it.
    if let Some(mut entry) = entry {
        entry.status = response.status().as_u16();
        if let Some(refusal) = &refusal {
            entry.fate = Fate::Refused(refusal.name());
        }
        response = response.map(|body| body.told(entry));
    }
    if let Some(told) = told {
        let outcome = Outcome { status: response.status(), decision, refusal };
        told.tell(&connection, (client, id()), app.zip(route()), &method, &outcome);
    }
    response
}

/// A request whose app is known.
struct Arrival {
    app: u32,
    route: Option<Arc<AppRoute>>,
    /// What of the path its worker does not see; the rest is in the request.
    prefix: Option<String>,
}

/// Checks the request, finds its app and takes the app's path off, if that is so configured.
fn arrive(connection: &Connection, client: &Client, parts: &mut Parts) -> Result<Arrival, (Option<u32>, Refusal)> {
    let inner = &connection.proxy;
    check::check(parts, connection.local).map_err(|refusal| (None, refusal))?;
    let door = connection.door();
    if door.tls.is_some() && !connection.client.is_secure {
        // The door has got TLS since the client came in.
        return Err((None, Refusal::Bad("this port speaks HTTPS now")));
    }
    let host = parts.headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
    let Found { app, stripped } = door.find(host, parts.uri.path()).map_err(|lost| match lost {
        Lost::Dots => (None, Refusal::Bad("a path here has no segments of dots")),
        Lost::Nobody => (None, Refusal::NoApp),
    })?;
    let route = inner.route(app);
    let refused = |refusal| (Some(app), refusal);
    connection.join(app, &door, client).map_err(|why| match why {
        Counter::Denied => refused(Refusal::Denied),
        Counter::RefusedConnections => refused(Refusal::TooManyConnections),
        _ => refused(Refusal::TooFast),
    })?;
    if let Some(route) = &route {
        if inner.pace.refuses_request(route, client.address) {
            return Err(refused(Refusal::TooManyRequests));
        }
        check::bounds(parts, &route.http).map_err(refused)?;
    }
    let outer = client.prefix.as_deref();
    let prefix = match stripped {
        None => outer.map(str::to_owned),
        Some((prefix, end)) => {
            let prefix = format!("{}{prefix}", outer.unwrap_or_default());
            parts.uri = without(&prefix, end, &parts.uri).map_err(refused)?;
            Some(prefix)
        }
    };
    Ok(Arrival { app, route, prefix })
}

/// The target without the first `end` bytes of its path, which clients see as `prefix`.
fn without(prefix: &str, end: usize, target: &Uri) -> Result<Uri, Refusal> {
    let rest = target.path_and_query().map_or("", |target| &target.as_str()[end..]);
    if rest.starts_with('/') {
        return Uri::try_from(rest).map_err(|_| Refusal::Bad("the request target is not a path"));
    }
    let location = HeaderValue::try_from(format!("{prefix}/{rest}"));
    Err(location.map_or(Refusal::Bad("the request target is not a path"), |location| Refusal::Moved { location }))
}

async fn forward(
    connection: &Arc<Connection>,
    client: &Client,
    id: HeaderValue,
    request: Request<Incoming>,
    upgrade: Option<Upgrade>,
    arrival: Arrival,
    entry: &mut Option<Entry>,
) -> Result<(Response<ResponseBody>, Decision), Refusal> {
    let Arrival { app, route, prefix } = arrival;
    let (mut parts, body) = request.into_parts();
    let inner = &connection.proxy;
    if upgrade.is_some() && !body.is_end_stream() {
        return Err(Refusal::Bad("a request to switch protocols has no body"));
    }
    headers::to_worker(&mut parts.headers, client, id, upgrade.is_some());
    if let Some(entry) = entry {
        entry.tell(&mut parts.headers);
    }
    if let Some(prefix) = prefix {
        headers::tell_prefix(&mut parts.headers, &prefix);
    }
    parts.version = Version::HTTP_11;
    parts.extensions.clear();

    let (cookie, presented) = match &route {
        Some(route) if route.affinity != Affinity::Ip => (
            Some(Arc::clone(&route.cookie)),
            cookie::read(&inner.keys, &route.cookie.name, &route.name, &parts.headers),
        ),
        _ => (None, Presented::Absent),
    };
    if presented == Presented::Invalid {
        inner.counters.add(Counter::CookieInvalid);
    }
    let introduction = route.as_ref().and_then(|route| route.send_proxy).map(|version| {
        // Of who came through a proxy no port is known.
        let is_its_own = client.address == connection.source.ip();
        let source = if is_its_own { connection.source } else { (client.address, 0).into() };
        Introduction { client: source, header: introduce(version, source, connection.local) }
    });
    let http = route.as_deref().map(|route| &*route.http);
    let bounds = Bounds { size_max: http.and_then(|http| http.body_max), pause_max: http.and_then(|http| http.body) };
    let answer_within = http.and_then(|http| http.response);
    drop(route);
    let navigates = upgrade.is_none() && answer::navigates(&parts);
    let session = learn::session_of(parts.uri.path()).and_then(|id| inner.sessions.find(app, id, Instant::now()));
    let visitor = Visitor {
        app,
        address: client.address,
        is_secure: client.is_secure,
        connection: connection.number(),
        presented,
        navigates,
        session,
    };
    let request = Request::from_parts(parts, RequestBody::new(body, bounds));
    Attempt { connection, visitor, cookie, upgrade, introduction, answer_within, entry }.run(request).await
}

/// A request that is ready to be placed and sent.
struct Attempt<'a> {
    connection: &'a Arc<Connection>,
    visitor: Visitor,
    /// The cookie to hide from the worker.
    cookie: Option<Arc<config::Cookie>>,
    upgrade: Option<Upgrade>,
    introduction: Option<Introduction>,
    /// From the last of the request to the head of the answer.
    answer_within: Option<Duration>,
    entry: &'a mut Option<Entry>,
}

/// A client that wants another protocol.
struct Upgrade {
    client: OnUpgrade,
    /// It asked as HTTP/2 does.
    bootstrap: Option<Bootstrap>,
}

impl Attempt<'_> {
    async fn run(mut self, mut request: Request<RequestBody>) -> Result<(Response<ResponseBody>, Decision), Refusal> {
        let inner = &self.connection.proxy;
        let mut patience = Patience::default();
        let mut shunned = None;
        let mut failed: Option<Instant> = None;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let place = inner.admit(self.visitor, request.headers(), &mut patience, shunned).await?;
            failed.inspect(|since| place.worker.load.times.retried.observe(since.elapsed()));
            let shown = self.hide_cookie(&mut request);
            let introduction = self.introduction.as_ref();
            let passage = request.body().passage();
            let on = match (&self.upgrade, failed) {
                (Some(_), _) => On::Own,
                // An idle one may be closed already, and what is sent a second time is not sent a third.
                (None, Some(_)) => On::New,
                (None, None) => On::Any,
            };
            let sending = inner.upstreams.send(&place.worker, introduction, request, on);
            let sent_at = Instant::now();
            let sent = within(self.answer_within, passage.as_deref(), sending).await?;
            let backend = place.worker.backend;
            let (unsent, refusal) = match sent {
                Ok(response) => {
                    place.worker.load.answered(sent_at);
                    let decision = Decision { worker: place.worker.number, rule: place.rule, held: patience.held() };
                    if let Some(entry) = self.entry {
                        let Decision { worker, rule, held } = decision;
                        entry.fate = Fate::Placed { worker, rule: rule.name(), held };
                    }
                    let response = match (response.status(), self.upgrade.take()) {
                        // To an extended CONNECT every success means that the tunnel is open.
                        (status, Some(Upgrade { bootstrap: Some(bootstrap), .. }))
                            if status.is_success()
                                || (status == StatusCode::SWITCHING_PROTOCOLS && !bootstrap.is_met_by(&response)) =>
                        {
                            inner.counters.add(Counter::UpstreamError);
                            tracing::debug!(
                                worker = place.worker.number,
                                "a worker did not open the WebSocket it was asked for"
                            );
                            return Err(Refusal::Broke);
                        }
                        (StatusCode::SWITCHING_PROTOCOLS, Some(upgrade)) => self.switch(response, upgrade, place),
                        (StatusCode::SWITCHING_PROTOCOLS, None) => {
                            inner.counters.add(Counter::UpstreamError);
                            tracing::debug!(worker = place.worker.number, "a worker switched protocols unasked");
                            return Err(Refusal::Broke);
                        }
                        _ => {
                            let Place { load, set_cookie, .. } = place;
                            answered(response, false, set_cookie).map(|body| ResponseBody::worker(body, load))
                        }
                    };
                    return Ok((response, decision));
                }
                Err(SendError::Refused { request, error }) => {
                    inner.counters.add(Counter::UpstreamRefused);
                    tracing::debug!(worker = place.worker.number, address = %place.worker.address, %error, "no connection");
                    (request, Refusal::Unreachable)
                }
                Err(SendError::Broke { error, request }) => {
                    inner.counters.add(Counter::UpstreamError);
                    tracing::debug!(worker = place.worker.number, %error, "the worker broke off before its answer");
                    let Some(request) = request else {
                        inner.notify(Notice::Unreachable { backend });
                        return Err(Refusal::Broke);
                    };
                    (request, Refusal::Broke)
                }
                Err(SendError::ClientBody(fault)) => {
                    return Err(match fault {
                        Fault::Broken => Refusal::Bad("the body broke off or is malformed"),
                        Fault::Slow => Refusal::BodyTooSlow,
                        Fault::TooLarge => Refusal::BodyTooLarge,
                    });
                }
            };
            inner.notify(Notice::Unreachable { backend });
            if attempts == ATTEMPTS {
                return Err(refusal);
            }
            failed = Some(Instant::now());
            inner.counters.add(Counter::Retried);
            request = *unsent;
            if let Some(shown) = shown {
                restore_cookie(&mut request, shown);
            }
            let newcomer = place.rule.is_new();
            drop(place);
            if newcomer && self.others_than(backend) {
                shunned = Some(backend);
            } else {
                Box::pin(inner.await_departure(self.visitor.app, backend, &mut patience)).await;
            }
        }
    }

    /// Passes the worker's 101 on, as a 200 where the client speaks HTTP/2, and starts the tunnel.
    fn switch(&mut self, response: Response<Arriving>, upgrade: Upgrade, mut place: Place) -> Response<ResponseBody> {
        let (parts, body) = response.into_parts();
        let (mut response, worker) = (Response::from_parts(parts, ()), body.into_stream());
        let set_cookie = place.set_cookie.take();
        if upgrade.bootstrap.is_some() {
            Bootstrap::answer(&mut response);
        }
        let (connection, app) = (self.connection, self.visitor.app);
        let mut entry = self.entry.take();
        if let Some(entry) = &mut entry {
            entry.status = response.status().as_u16();
        }
        let client = (upgrade.client, upgrade.bootstrap.and_then(|_| Tunnelled::here()));
        tokio::spawn(tunnel::run(Arc::clone(connection), app, place, entry, client, worker));
        answered(response, true, set_cookie).map(|()| ResponseBody::Fixed(None))
    }

    /// Whether another worker takes new clients.
    fn others_than(&self, backend: lb_common::abi::BackendId) -> bool {
        let route = self.connection.proxy.route(self.visitor.app);
        route.is_some_and(|route| session::pick(&route.workers, None, Some(backend)).is_some())
    }

    /// Returns the Cookie headers as they were; `None` where homing has no cookie to hide.
    fn hide_cookie(&self, request: &mut Request<RequestBody>) -> Option<Vec<HeaderValue>> {
        let cookie = self.cookie.as_ref()?;
        let shown = request.headers().get_all(COOKIE).iter().cloned().collect();
        cookie::hide(request.headers_mut(), &cookie.name);
        Some(shown)
    }
}

/// The answer, if its head comes within `after` of the last of the request, whose body may take its time.
async fn within<T>(
    after: Option<Duration>,
    passage: Option<&Passage>,
    sending: impl Future<Output = T>,
) -> Result<T, Refusal> {
    let Some(after) = after else { return Ok(sending.await) };
    let mut sending = pin!(sending);
    let mut deadline = tokio::time::Instant::now() + after;
    loop {
        if let Ok(sent) = timeout_at(deadline, sending.as_mut()).await {
            return Ok(sent);
        }
        match passage.map(|passage| passage.last() + after) {
            Some(later) if later > deadline => deadline = later,
            _ => return Err(Refusal::TooLate { after }),
        }
    }
}

fn restore_cookie(request: &mut Request<RequestBody>, shown: Vec<HeaderValue>) {
    request.headers_mut().remove(COOKIE);
    for value in shown {
        request.headers_mut().append(COOKIE, value);
    }
}

fn answered<B>(mut response: Response<B>, upgrade: bool, set_cookie: Option<HeaderValue>) -> Response<B> {
    *response.version_mut() = Version::HTTP_11;
    headers::to_client(response.headers_mut(), upgrade);
    if let Some(cookie) = set_cookie {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_time_for_an_answer_begins_when_the_body_has_come() {
        let passage = Passage::default();
        let upload = async {
            for _ in 0..20 {
                sleep(4 * SECOND).await;
                passage.goes_on();
            }
            std::future::pending().await
        };
        let begun = tokio::time::Instant::now();
        let refused = tokio::select! {
            refused = within(Some(10 * SECOND), Some(&passage), std::future::pending::<()>()) => refused,
            refused = upload => refused,
        };
        assert_eq!((refused, begun.elapsed()), (Err(Refusal::TooLate { after: 10 * SECOND }), 90 * SECOND));
        assert_eq!(within(Some(10 * SECOND), None, sleep(9 * SECOND)).await, Ok(()));
        assert!(within(Some(10 * SECOND), None, sleep(11 * SECOND)).await.is_err());
        assert_eq!(within(None, None, sleep(9_999 * SECOND)).await, Ok(()));
    }
}
