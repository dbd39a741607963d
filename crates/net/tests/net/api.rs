//! HTTP/1.1 beside frames on one port.

use crate::common::{Pki, SOON, echo, loopback};
use async_trait::async_trait;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use mainstay_net::{Client, Expect, HttpServe, Mesh, NetError, ServerStream, http};
use mainstay_ports::peer::{Caller, Channel};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Answers with who asked for what.
struct WhoAsks;

async fn who_asks(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let caller = request.extensions().get::<Caller>().cloned();
    let (head, body) = request.into_parts();
    if head.uri.path() == "/slow" {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let text = format!("{caller:?} {} {} {}", head.method, head.uri, String::from_utf8_lossy(&body));
    let mut response = Response::new(Full::new(Bytes::from(text)));
    if head.uri.path() == "/missing" {
        *response.status_mut() = hyper::StatusCode::NOT_FOUND;
    }
    Ok(response)
}

#[async_trait]
impl HttpServe for WhoAsks {
    async fn serve(&self, stream: ServerStream, caller: Caller) {
        http::serve_service(stream, caller, hyper::service::service_fn(who_asks)).await;
    }
}

async fn agent(pki: &Pki) -> (Arc<Mesh>, SocketAddr) {
    let mesh = Mesh::with_credentials(pki.node("db1"), Some(loopback()), BTreeMap::new()).unwrap();
    let address = mesh.serve(echo().1, Some(Arc::new(WhoAsks))).await.unwrap().unwrap();
    (mesh, address)
}

#[tokio::test]
async fn requests_carry_the_callers_name() {
    let pki = Pki::new();
    let (_mesh, address) = agent(&pki).await;
    let body = serde_json::json!({"to": "db2"});
    let ask = ("POST", "/v1/switchover?x=1");
    let answer = http::request(&pki.admin(), address, Expect::AnyNode, ask, Some(&body), SOON).await.unwrap();
    let text = String::from_utf8(answer.1).unwrap();
    assert_eq!((answer.0, text.as_str()), (200, r#"Some(Admin("ann")) POST /v1/switchover?x=1 {"to":"db2"}"#));
    let answer = http::request(&pki.proxy(), address, Expect::AnyNode, ("GET", "/missing"), None, SOON).await.unwrap();
    assert_eq!(answer.0, 404);
    assert!(String::from_utf8(answer.1).unwrap().starts_with(r#"Some(Proxy("p1")) GET"#));
    let client = Client::connect(address, Expect::AnyNode, &pki.node("db2")).await.unwrap();
    assert_eq!(client.request(Channel::Ask, b"x".to_vec(), SOON).await, Ok(b"x".to_vec()), "frames on the same port");
}

#[tokio::test]
async fn a_slow_answer_and_a_dead_agent_are_errors_that_say_where() {
    let pki = Pki::new();
    let (mesh, address) = agent(&pki).await;
    let limit = Duration::from_secs(2);
    let late = http::request(&pki.admin(), address, Expect::AnyNode, ("GET", "/slow"), None, limit).await;
    assert!(matches!(&late, Err(error @ NetError::Http { .. }) if error.to_string().contains("/slow")), "{late:?}");
    mesh.close();
    let began = std::time::Instant::now();
    loop {
        let dead = http::request(&pki.admin(), address, Expect::AnyNode, ("GET", "/"), None, SOON).await;
        if matches!(dead, Err(NetError::Connect { .. })) {
            break;
        }
        assert!(began.elapsed() < SOON, "{dead:?}");
    }
}
