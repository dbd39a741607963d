//! A plain HTTP listener that holds no secret and changes nothing: bounded in connections and time, since anybody may connect.
//! Absent: what is answered.

use axum::Router;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::warn;

/// Connections at once; a load balancer needs a handful. More wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// A request's head must be here within this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// No connection lives longer, so that idle ones do not hold the places.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// What stands at a path: its type and its text.
pub type Pages = Arc<dyn Fn(&str) -> Option<(&'static str, String)> + Send + Sync>;

/// Serves these routes until the listener fails for good.
pub async fn serve(listener: TcpListener, routes: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let service = TowerToHyperService::new(routes);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a health check could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = service.clone();
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            // How a health check's connection ends interests nobody.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(place);
        });
    }
}

/// Serves texts that are made when they are asked for, for reading only.
pub async fn serve_pages(listener: TcpListener, pages: Pages) {
    let answer = move |method: Method, uri: Uri| {
        let pages = Arc::clone(&pages);
        async move { page(&method, uri.path(), &pages) }
    };
    serve(listener, Router::new().fallback(answer)).await;
}

fn page(method: &Method, path: &str, pages: &Pages) -> Response {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return (StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n").into_response();
    }
    match pages(path) {
        Some((kind, text)) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        None => (StatusCode::NOT_FOUND, format!("there is nothing at {path}\n")).into_response(),
    }
}
