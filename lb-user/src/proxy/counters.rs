//! What the HTTP path counts: every decision, refusal and retry has a name.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What happened to a request, a connection or a tunnel of the HTTP path.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Counter { $($(#[doc = $doc])+ $variant,)+ }

        impl Counter {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name in `homing status` and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it counts, in one sentence.
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

counters! {
    /// Connections accepted.
    Connections = "http_connections",
    /// Connections refused, where no kernel path does it: the app's lists deny the address.
    Denied = "http_denied",
    /// Connections refused, where no kernel path does it: one client is faster than `protect.client_rate`.
    ClientTooFast = "http_client_too_fast",
    /// Connections refused, where no kernel path does it: all clients are faster than `protect.app_rate`.
    AppTooFast = "http_app_too_fast",
    /// Connections refused: not from a trusted proxy, or without a PROXY header where `proxy_protocol` wants one.
    ProxyRefused = "http_proxy_refused",
    /// Times that no connection could be accepted, or none be made to a worker, for want of file descriptors or memory; each waits
    /// a tenth of a second and is tried again.
    NoDescriptors = "http_no_descriptors",
    /// TLS handshakes completed.
    TlsHandshakes = "http_tls_handshakes",
    /// TLS handshakes that failed or took too long.
    TlsFailed = "http_tls_failed",
    /// Connections without TLS to a port that speaks it, told so.
    TlsPlain = "http_tls_plain",
    /// Connections by HTTP/2.
    Http2Connections = "http_h2_connections",
    /// HTTP/2 connections that broke, or were closed because their client broke the rules.
    Http2Broken = "http_h2_broken",
    /// Streams of HTTP/2 ended because their client took nothing of the answer for 15 minutes.
    Http2Stalled = "http_h2_stalled",
    /// Requests received, refused ones included.
    Requests = "http_requests",
    /// Requests held because no worker could take them.
    Held = "http_held",
    /// Requests refused because no worker became ready in time.
    RefusedNoWorker = "http_refused_no_worker",
    /// Requests refused because the app has failed.
    RefusedFailed = "http_refused_failed",
    /// Requests of new clients refused because every worker has as many connections as it may.
    RefusedFull = "http_refused_full",
    /// Requests refused because too many are held already.
    RefusedHeldFull = "http_refused_held_full",
    /// Connections refused because the app has `http.max_connections`.
    RefusedConnections = "http_refused_connections",
    /// Requests refused because their client asks faster than `http.client_rate` (429).
    RefusedRate = "http_refused_rate",
    /// Requests refused because they are larger than `http.head_max` or `http.body_max` (413, 431).
    RefusedTooLarge = "http_refused_too_large",
    /// Requests given up because their client fell silent in the midst of the body (408).
    RefusedBodySlow = "http_refused_body_slow",
    /// Requests refused as malformed or unsupported (400, 405, 417, 431, 501).
    RefusedBadRequest = "http_refused_bad_request",
    /// Requests for a host or path that no app on their address has.
    RefusedNoApp = "http_refused_no_app",
    /// Clients without a cookie that were given a worker and a cookie.
    CookieNew = "http_cookie_new",
    /// Requests that reached the worker that their cookie names.
    CookieKept = "http_cookie_kept",
    /// Cookies that were forged, damaged or sealed with another key; treated as absent.
    CookieInvalid = "http_cookie_invalid",
    /// Clients whose worker process is gone, given another worker and a new cookie.
    CookieRebound = "http_cookie_rebound",
    /// Shiny sessions whose id was read from the beginning of their WebSocket.
    SessionsLearnt = "http_sessions_learnt",
    /// Requests for something of such a session that reached its worker, whatever their cookie says.
    SessionKept = "http_session_kept",
    /// Pages for a browser without a cookie that joined another of its pages, so that all its tabs have one worker.
    PageJoined = "http_page_joined",
    /// Other requests of a browser without a cookie that followed its page.
    PageFollowed = "http_page_followed",
    /// Requests that the ring placed by address.
    AddressRing = "http_address_ring",
    /// Requests that an address's binding placed while its slot is in transition.
    AddressBound = "http_address_bound",
    /// Clients that the HTTP path bound to a backend for the first time, or again after they were forgotten.
    BindingNew = "http_binding_new",
    /// Clients whose binding the HTTP path moved to another backend, as when their worker has just died.
    BindingMoved = "http_binding_moved",
    /// Connections to a worker that were refused or timed out.
    UpstreamRefused = "http_upstream_refused",
    /// Requests sent once more, and never twice: their worker refused the connection, or closed it without an answer to what may be repeated.
    Retried = "http_retried",
    /// Times a worker broke off before its answer: answered with 502, or sent once more where it may be repeated.
    UpstreamError = "http_upstream_error",
    /// Requests answered with 504 because the worker did not answer within `timeouts.response`.
    UpstreamTimeout = "http_upstream_timeout",
    /// Answers of a worker that broke off midway.
    UpstreamBroke = "http_upstream_broke",
    /// Tunnels opened after a worker's 101.
    TunnelsOpened = "http_tunnels_opened",
    /// Tunnels closed, for whatever reason.
    TunnelsClosed = "http_tunnels_closed",
    /// Tunnels closed because one end, or both, said nothing for too long (`timeouts.websocket_idle`, `websocket_read`).
    TunnelsSilent = "http_tunnels_silent",
    /// Lines of the access log that were dropped: the disk was full, or slower than what there was to write.
    AccessLogDropped = "http_access_log_dropped",
    /// Spans of requests (`homing.traces`) that the collector did not take.
    SpansDropped = "http_spans_dropped",
    /// Notices to control that were dropped because its queue was full.
    NoticesDropped = "http_notices_dropped",
}

/// One value per [`Counter`].
pub struct Counters([AtomicU64; Counter::ALL.len()]);

impl Counters {
    pub(super) fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Counter::ALL.len()])
    }

    #[inline]
    pub(super) fn add(&self, counter: Counter) {
        // Statistics: no other memory is published by them.
        self.0[counter as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_many(&self, counter: Counter, times: u64) {
        self.0[counter as usize].fetch_add(times, Ordering::Relaxed);
    }

    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Counter, u64)> + '_ {
        Counter::ALL.iter().map(|&counter| (counter, self.get(counter)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_counter_is_explained() {
        let mut names: Vec<_> = Counter::ALL.iter().map(|c| c.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Counter::ALL.len());
        assert!(Counter::ALL.iter().all(|c| c.help().ends_with('.')), "a sentence each");
    }
}
