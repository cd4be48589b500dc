//! `ikada-dp wait` (reference: §3.5).

use crate::{admin, bootstrap::AdminAddress, cli::Wait};
use anyhow::{Context, anyhow, bail};
use std::time::Instant;

/// Where to ask, and for what. Only loopback hosts: the answer of another machine says nothing about this one.
fn target(args: &Wait) -> anyhow::Result<(AdminAddress, String)> {
    let url: http::Uri = args.url.parse().with_context(|| format!("{} is no URL", args.url))?;
    let path = url.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    if let Some(socket) = &args.unix_socket {
        return Ok((AdminAddress::Pipe(socket.clone()), path));
    }
    if url.scheme_str() != Some("http") {
        bail!("{} is not an http:// address", args.url);
    }
    let host = url.host().unwrap_or("");
    let ip = match host {
        "localhost" => std::net::Ipv4Addr::LOCALHOST.into(),
        _ => host.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| anyhow!("{host:?} is not a loopback address"))?,
    };
    let ip: std::net::IpAddr = ip;
    if !ip.is_loopback() {
        bail!("{host:?} is not a loopback address");
    }
    Ok((AdminAddress::Tcp(ip, url.port_u16().unwrap_or(80)), path))
}

/// Asks until the answer is 200.
///
/// # Errors
/// The time is over, or the address is no loopback address.
pub async fn run(args: &Wait) -> anyhow::Result<()> {
    let (address, path) = target(args)?;
    let start = Instant::now();
    loop {
        let reason = match admin::call(&address, http::Method::GET, &path, args.request_timeout).await {
            Ok(status) if status == http::StatusCode::OK => return Ok(()),
            Ok(status) => format!("the answer is {status}"),
            Err(e) => format!("{e:#}"),
        };
        if start.elapsed() + args.check_frequency > args.timeout {
            bail!("the proxy is not ready after {:?}: {reason}", args.timeout);
        }
        tracing::debug!("not ready: {reason}");
        tokio::time::sleep(args.check_frequency).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn args(url: &str) -> Wait {
        let ms = Duration::from_millis;
        Wait { url: url.to_owned(), unix_socket: None, check_frequency: ms(10), request_timeout: ms(100), timeout: ms(50) }
    }

    #[test]
    fn only_this_machine_is_asked() {
        let (address, path) = target(&args("http://localhost:9901/ready")).unwrap();
        assert_eq!((address, path.as_str()), (AdminAddress::Tcp("127.0.0.1".parse().unwrap(), 9901), "/ready"));
        assert!(target(&args("http://[::1]:1/ready")).is_ok());
        assert!(target(&args("http://10.0.0.1:1/ready")).is_err());
        assert!(target(&args("http://example.org/ready")).is_err());
        assert!(target(&args("https://localhost/ready")).is_err());
    }

    #[tokio::test]
    async fn gives_up() {
        assert!(run(&args("http://127.0.0.1:1/ready")).await.unwrap_err().to_string().contains("not ready after"));
    }
}
