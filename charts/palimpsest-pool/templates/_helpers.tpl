{{- define "pool.name" -}}
{{- default "pageserver" .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "pool.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- /* What selects pods: no version in it, since selectors cannot change. */ -}}
{{- define "pool.selector" -}}
app.kubernetes.io/name: {{ include "pool.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
palimpsest.dev/pool: {{ include "pool.fullname" . }}
{{- end -}}

{{- define "pool.labels" -}}
{{ include "pool.selector" . }}
app.kubernetes.io/component: pageserver
{{ include "pool.commonLabels" . }}
{{- end -}}

{{- define "pool.commonLabels" -}}
app.kubernetes.io/part-of: palimpsest
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "pool.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "pool.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "pool.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "pool.controlSecret" -}}
{{- default "palimpsest-control" .Values.controlAuth.secretName -}}
{{- end -}}

{{- define "pool.serverName" -}}
{{- default (printf "%s-pods.%s.svc" (include "pool.fullname" .) .Release.Namespace) .Values.controlAuth.serverName -}}
{{- end -}}

{{- /* The settings file: flat names and values, as `pageserver config` prints them. */ -}}
{{- define "pool.settings" -}}
{{- $settings := dict
  "workdir" "/var/lib/palimpsest/work"
  "bucket" (printf "s3://%s/%s" .Values.storage.bucket .Values.storage.prefix | trimSuffix "/")
  "listen_pg_addr" (printf "%s:6400" .Values.listenAddress)
  "listen_http_addr" (printf "%s:9898" .Values.listenAddress)
  "listen_control_addr" (printf "%s:6402" .Values.listenAddress)
  "cache_disk" (printf "%sB" .Values.cache.disk)
  "cache_memory" (printf "%sB" .Values.cache.memory)
  "tail_memory" (printf "%sB" .Values.tailMemory)
  "log_format" .Values.log.format
  "log_filter" .Values.log.filter
-}}
{{- if .Values.storage.endpoint }}{{ $_ := set $settings "s3_endpoint" .Values.storage.endpoint }}{{ end -}}
{{- if .Values.storage.region }}{{ $_ := set $settings "s3_region" .Values.storage.region }}{{ end -}}
{{- if eq .Values.storage.conditionalWrites "BestEffort" }}{{ $_ := set $settings "conditional_writes" "best-effort" }}{{ end -}}
{{- if eq .Values.controlAuth.mode "MutualTLS" -}}
{{- $_ := set $settings "control_tls_cert_file" "/etc/palimpsest/control/tls.crt" -}}
{{- $_ := set $settings "control_tls_key_file" "/etc/palimpsest/control/tls.key" -}}
{{- $_ := set $settings "control_tls_ca_file" "/etc/palimpsest/control/ca.crt" -}}
{{- $_ := set $settings "control_client_name" .Values.controlAuth.operatorName -}}
{{- else -}}
{{- $_ := set $settings "control_token_file" "/etc/palimpsest/control/token" -}}
{{- end -}}
{{- if .Values.clients.tls.secretName -}}
{{- $_ := set $settings "tls_cert_file" "/etc/palimpsest/tls/tls.crt" -}}
{{- $_ := set $settings "tls_key_file" "/etc/palimpsest/tls/tls.key" -}}
{{- end -}}
{{- if .Values.clients.jwt.publicKeySecretName }}{{ $_ := set $settings "jwt_public_key_dir" "/etc/palimpsest/jwt" }}{{ end -}}
{{- if .Values.sources.secretName }}{{ $_ := set $settings "credentials_dir" "/etc/palimpsest/sources" }}{{ end -}}
{{- toYaml (mergeOverwrite $settings .Values.settings) -}}
{{- end -}}
