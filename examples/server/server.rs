//! A server for several tenants in one process, with a live page that shows
//! whose memory is whose.
//!
//! ```text
//! cargo run --release --example server
//! ```
//!
//! and open the address that it prints. What is hostile can be started there,
//! tiers and limits can be changed while it runs: with the token that it
//! prints. `--help` says what else there is.

use std::io::{self, IsTerminal};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;
use tiered_allocator::TieredAllocator;
use tiered_allocator_server::{App, Options};
use tokio::net::TcpListener;

#[global_allocator]
static HEAP: TieredAllocator = TieredAllocator::system();

const PORT: u16 = 7117;
/// Ports that are tried when nobody asked for one.
const PORTS: u16 = 20;

const HELP: &str = "\
A server for several tenants in one process, with a live page of who holds what.

  --port N        listen there, or end if it is taken (0: any free one);
                  default: 7117 or the next that is free
  --listen ADDR   listen on this address; default: 127.0.0.1
  --seconds N     end after so many seconds; default: at Ctrl-C
  --no-load       without requests of its own
  --no-open       do not open the page in a browser
";

struct Arguments {
    listen: IpAddr,
    port: Option<u16>,
    seconds: Option<u64>,
    load: bool,
    open: bool,
}

/// `None`: only help was asked for.
fn arguments() -> Result<Option<Arguments>, lexopt::Error> {
    use lexopt::prelude::*;
    let mut arguments = Arguments {
        listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: None,
        seconds: None,
        load: true,
        open: true,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("listen") => arguments.listen = parser.value()?.parse()?,
            Long("port") => arguments.port = Some(parser.value()?.parse()?),
            Long("seconds") => arguments.seconds = Some(parser.value()?.parse()?),
            Long("no-load") => arguments.load = false,
            Long("no-open") => arguments.open = false,
            Long("help") | Short('h') => return Ok(None),
            _ => return Err(argument.unexpected()),
        }
    }
    Ok(Some(arguments))
}

async fn bind(listen: IpAddr, port: Option<u16>) -> Result<TcpListener, String> {
    let (first, tries) = port.map_or((PORT, PORTS), |port| (port, 1));
    let mut last = None;
    for port in (first..).take(tries.into()) {
        match TcpListener::bind(SocketAddr::new(listen, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = Some(error),
            Err(error) => return Err(format!("cannot listen on {listen}, port {port}: {error}")),
        }
    }
    let error = last.map_or_else(String::new, |error| error.to_string());
    Err(match port {
        Some(port) => format!("port {port} is taken ({error}): name another with --port"),
        None => format!(
            "ports {first} to {} are all taken: name one with --port",
            first + tries - 1
        ),
    })
}

/// Whether a browser that is opened would be seen by whoever started this.
fn has_desktop() -> bool {
    let set = |name| std::env::var_os(name).is_some();
    let display = cfg!(not(target_os = "linux")) || set("DISPLAY") || set("WAYLAND_DISPLAY");
    io::stdout().is_terminal() && display && !set("SSH_CONNECTION") && !set("CI")
}

async fn end(seconds: Option<u64>) {
    let time = async {
        match seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    #[cfg(unix)]
    let terminated = async {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<()>();
    tokio::select! {
        () = time => {}
        () = terminated => {}
        // Without a handler the system ends the process as ever.
        Ok(()) = tokio::signal::ctrl_c() => {}
    }
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let options = Options {
        load: arguments.load,
        ..Options::default()
    };
    let app = App::new(&options, &HEAP)?;
    let listener = bind(arguments.listen, arguments.port).await?;
    let address = listener.local_addr()?;
    println!("Whose memory is whose: http://{address}/");
    println!("operator's token:      {}", app.token());
    // Without it there is the page.
    #[cfg(unix)]
    let top = app.listen_for_top().ok();
    #[cfg(unix)]
    if top.is_some() {
        println!("in a terminal:         cargo run --release --example tiered_top");
    }
    if !address.ip().is_loopback() {
        eprintln!(
            "warning: everybody who reaches {} sees the figures and can send jobs, and the \
             token travels in the clear",
            address.ip()
        );
    }
    println!("Ctrl-C ends it.");
    if arguments.open && has_desktop() {
        // Without a browser there is the address above.
        let _ = open::that_detached(format!("http://{address}/"));
    }
    let ending = {
        let app = std::sync::Arc::clone(&app);
        tokio::spawn(async move {
            end(arguments.seconds).await;
            app.stop();
        })
    };
    app.serve(listener).await?;
    ending.abort();
    println!("\n{}", app.report());
    Ok(())
}

fn main() -> ExitCode {
    assert!(TieredAllocator::is_installed());
    let arguments = match arguments() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
