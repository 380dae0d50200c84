{{- define "attnserve.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "attnserve.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: serve
{{- end }}

{{- define "attnserve.labels" -}}
{{ include "attnserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "attnserve.metadata" -}}
name: {{ include "attnserve.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "attnserve.labels" . | nindent 2 }}
{{- end }}

{{- define "attnserve.grpcPort" -}}{{ regexFind "[0-9]+$" .Values.config.grpc_address }}{{- end }}
{{- define "attnserve.httpPort" -}}{{ regexFind "[0-9]+$" .Values.config.http_address }}{{- end }}

{{- define "attnserve.fetches" -}}{{ if has .Values.models.source (list "oci" "objectStore") }}true{{ end }}{{- end }}

{{- /* Large numbers come as floats, which would be written as 1.6e+07. */}}
{{- define "attnserve.option" -}}
{{ if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- define "attnserve.unprivileged" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "attnserve.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies: [{type: Percent, value: 100, periodSeconds: 30}]
scaleDown:
  stabilizationWindowSeconds: 300
  policies: [{type: Pods, value: 1, periodSeconds: 60}]
{{- end }}

{{- /* Secrets that are mounted: per volume the Secret, and the options that name its files. */}}
{{- define "attnserve.secrets" -}}
{{- with .Values.tls.secret }}
tls:
  secret: {{ . }}
  options: {tls_certificate: /etc/attnserve/tls/tls.crt, tls_key: /etc/attnserve/tls/tls.key}
{{- end }}
{{- with .Values.tls.clientsSecret }}
clients:
  secret: {{ . }}
  options: {tls_client_ca: /etc/attnserve/clients/ca.crt}
{{- end }}
{{- with .Values.access.secret }}
access:
  secret: {{ . }}
  options: {access_file: /etc/attnserve/access/access.toml}
{{- end }}
{{- end }}

{{- /* Nobody should believe in a lock that is not there, and no option be said twice. */}}
{{- define "attnserve.check" -}}
{{- if and (or .Values.tls.http .Values.tls.clientsSecret) (not .Values.tls.secret) }}
{{- fail "tls.http and tls.clientsSecret need tls.secret" }}
{{- end }}
{{- if hasKey .Values.config "http_tls" }}
{{- fail "config.http_tls: take tls.http, which probes and scrapes follow" }}
{{- end }}
{{- range $name := list "tls_certificate" "tls_key" "tls_client_ca" "access_file" }}
{{- if hasKey $.Values.config $name }}
{{- fail (printf "config.%s: no volume would hold its file; take tls or access, which mount a Secret" $name) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "attnserve.grpcProtocol" -}}{{ ternary "https" "kubernetes.io/h2c" (ne .Values.tls.secret "") }}{{- end }}
