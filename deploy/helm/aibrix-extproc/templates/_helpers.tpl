{{/* The name of everything: the release's, with the chart's in it. */}}
{{- define "extproc.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "extproc.selector" -}}
app.kubernetes.io/name: {{ include "extproc.name" . }}
{{- end -}}

{{- define "extproc.chartLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "extproc.labels" -}}
{{ include "extproc.selector" . }}
{{ include "extproc.chartLabels" . }}
{{- end -}}

{{- define "extproc.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "extproc.name" .) -}}
{{- end -}}

{{/* The variables: those that values decide, and over them those that are written out. */}}
{{- define "extproc.settings" -}}
{{- $all := dict -}}
{{- $_ := set $all "AIBRIX_EXTPROC_NAMESPACE" .Values.engines.namespace -}}
{{- $_ := set $all "AIBRIX_KV_EVENT_PORT" (toString .Values.engines.eventPort) -}}
{{- $_ := set $all "AIBRIX_KV_REPLAY_PORT" (toString .Values.engines.replayPort) -}}
{{- $_ := set $all "AIBRIX_EXTPROC_PRE_STOP_DELAY" (printf "%vs" .Values.preStopDelaySeconds) -}}
{{- $_ := set $all "AIBRIX_KV_INDEX_MAX_BYTES" .Values.index.maxBytes -}}
{{- if .Values.warmStart.fromPeer -}}
{{- $_ := set $all "AIBRIX_EXTPROC_PEER_ADDRESS" ":8082" -}}
{{- $_ := set $all "AIBRIX_EXTPROC_DEBUG_HOSTS" (printf "%s-headless" (include "extproc.name" .)) -}}
{{- end -}}
{{- if .Values.warmStart.snapshot -}}
{{- $_ := set $all "AIBRIX_KV_SNAPSHOT_PATH" "/var/lib/aibrix-extproc/index.snapshot" -}}
{{- end -}}
{{- if .Values.tls.enabled -}}
{{- $_ := set $all "AIBRIX_EXTPROC_GRPC_TLS_CERT" "/etc/aibrix-extproc/tls/tls.crt" -}}
{{- $_ := set $all "AIBRIX_EXTPROC_GRPC_TLS_KEY" "/etc/aibrix-extproc/tls/tls.key" -}}
{{- if .Values.tls.clientCA -}}
{{- $_ := set $all "AIBRIX_EXTPROC_GRPC_TLS_CLIENT_CA" "/etc/aibrix-extproc/tls/ca.crt" -}}
{{- end -}}
{{- end -}}
{{- if .Values.curve.enabled -}}
{{- $_ := set $all "AIBRIX_KV_CURVE_SERVER_KEY_FILE" "/etc/aibrix-extproc/curve/server.key" -}}
{{- $_ := set $all "AIBRIX_KV_CURVE_CLIENT_KEY_FILE" "/etc/aibrix-extproc/curve/client.key_secret" -}}
{{- end -}}
{{- range $name, $value := .Values.settings -}}
{{- $_ := set $all $name (toString $value) -}}
{{- end -}}
{{- range $name, $value := $all }}
{{ $name }}: {{ $value | quote }}
{{- end -}}
{{- end -}}

{{- define "extproc.eventPorts" -}}
- {port: {{ .Values.engines.httpPort }}, protocol: TCP}
- {port: {{ .Values.engines.eventPort }}, endPort: {{ add .Values.engines.eventPort .Values.engines.ranks -1 }}, protocol: TCP}
- {port: {{ .Values.engines.replayPort }}, endPort: {{ add .Values.engines.replayPort .Values.engines.ranks -1 }}, protocol: TCP}
{{- end -}}

{{- define "extproc.namespaces" -}}
{{- range . }}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ . }}
{{- end }}
{{- end -}}

{{/* What a schema cannot say. */}}
{{- define "extproc.check" -}}
{{- if le (int .Values.terminationGracePeriodSeconds) (add (int .Values.preStopDelaySeconds) 5) -}}
{{- fail "terminationGracePeriodSeconds must be more than 5 s above preStopDelaySeconds: the last decisions and two saves come after the delay" -}}
{{- end -}}
{{- $gap := sub (int .Values.engines.replayPort) (int .Values.engines.eventPort) -}}
{{- if and (lt $gap (int .Values.engines.ranks)) (lt (mul $gap -1) (int .Values.engines.ranks)) -}}
{{- fail "engines.eventPort and engines.replayPort are nearer than engines.ranks: rank r uses port + r of both" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" -}}
{{- end -}}
{{- end -}}
