//! What the control plane's configuration says about bootstraps.

use std::time::Duration;

/// Settings (`bootstrapServer.params.*` and what else bootstraps depend on).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapParams {
    /// `adminAddress`, used when the admin is not on a unix socket.
    pub admin_address: String,
    /// `adminPort`; 0 = no admin unless the resource names a port.
    pub admin_port: u32,
    /// `adminAccessLogPath`.
    pub admin_access_log_path: String,
    /// `envoyAdminUnixSocket`.
    pub envoy_admin_unix_socket: bool,
    /// `xdsHost`; empty = the host of the request.
    pub xds_host: String,
    /// `xdsPort`; the caller puts `dpServer.port` here when it is 0.
    pub xds_port: u16,
    /// `xdsConnectTimeout`.
    pub xds_connect_timeout: Duration,
    /// `xdsGrpcMaxReceiveMessageBytes`, bytes; used with reloadable tokens only.
    pub xds_grpc_max_receive_message_bytes: u32,
    /// Content of the file `corefileTemplatePath`.
    pub corefile_template: Option<Vec<u8>>,
    /// `dpServer.hds.enabled`.
    pub hds_enabled: bool,
    /// `dpServer.authn.enableReloadableTokens`.
    pub enable_reloadable_tokens: bool,
    /// `dpServer.authn.dpProxy.type` is not `none`.
    pub dp_token_required: bool,
    /// `dpServer.authn.zoneProxy.type` is not `none`.
    pub zone_token_required: bool,
    /// `proxy.gateway.globalDownstreamMaxConnections`.
    pub gateway_global_downstream_max_connections: u64,
    /// `experimental.inboundTagsDisabled`.
    pub inbound_tags_disabled: bool,
}

impl Default for BootstrapParams {
    fn default() -> Self {
        BootstrapParams {
            admin_address: "127.0.0.1".into(),
            admin_port: 9901,
            admin_access_log_path: "/dev/null".into(),
            envoy_admin_unix_socket: true,
            xds_host: String::new(),
            xds_port: 5678,
            xds_connect_timeout: Duration::from_secs(1),
            xds_grpc_max_receive_message_bytes: 4_194_304,
            corefile_template: None,
            hds_enabled: true,
            enable_reloadable_tokens: false,
            dp_token_required: true,
            zone_token_required: true,
            gateway_global_downstream_max_connections: 50_000,
            inbound_tags_disabled: false,
        }
    }
}

/// The certificate of the data-plane server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerCertificate {
    /// PEM.
    pub pem: String,
    /// DNS names and IP addresses it is valid for, as text.
    pub sans: Vec<String>,
}
