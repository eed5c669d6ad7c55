{{- define "image" -}}
{{ .repository }}:{{ .tag }}{{ with .digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "labels" -}}
app.kubernetes.io/name: {{ . }}
app.kubernetes.io/part-of: apprentice
{{- end }}

{{/* "true" where a pool is discovered by EndpointSlices. */}}
{{- define "slices" -}}
{{- range .Values.pools }}{{ if eq (.discovery | default $.Values.poolDefaults.discovery) "endpointslices" }}true{{ end }}{{ end }}
{{- end }}

{{- define "pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  runAsGroup: {{ .user }}
  fsGroup: {{ .user }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Where pods run. */}}
{{- define "placing" -}}
{{- range $name := list "nodeSelector" "tolerations" "affinity" "priorityClassName" }}
{{- with get $ $name }}
{{ dict $name . | toYaml }}
{{- end }}
{{- end }}
{{- end }}

{{- define "annotations" -}}
{{- with .podAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {app.kubernetes.io/name: {{ . }}}
{{- end }}

{{/* The way out to who knows names. */}}
{{- define "dns" -}}
- to: {{- toYaml .to | nindent 4 }}
  ports:
    {{- range .ports }}
    - port: {{ . }}
      protocol: UDP
    - port: {{ . }}
      protocol: TCP
    {{- end }}
{{- end }}

{{- define "container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "secretKey" -}}
valueFrom:
  secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}
{{- end }}

{{- define "budget" -}}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ . }}
  labels: {{- include "labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {app.kubernetes.io/name: {{ . }}}
{{- end }}

{{/* apprentice.yaml: what follows from the values, and the sections that an installation gives. In drain_seconds_min
     callers whose connections to the pod are open hear with an answer that they end. */}}
{{- define "config" -}}
{{- $pools := dict }}
{{- range $name, $given := .Values.pools }}
{{- $pool := mergeOverwrite (deepCopy $.Values.poolDefaults) $given }}
{{- $discover := dict "in_flight_max" $pool.inFlightMax }}
{{- if eq $pool.discovery "endpointslices" }}
{{- $_ := set $discover "service" (dict "name" (printf "engine-%s" $name) "port" "http") }}
{{- else }}
{{- $_ := merge $discover (dict "dns" (printf "engine-%s" $name) "port" 8000) }}
{{- end }}
{{- $made := dict "base_model" $name }}
{{- if $pool.tlsSecret }}
{{- $_ := set $discover "server_name" (printf "engine-%s" $name) }}
{{- $_ := set $made "tls" (dict "ca_file" (printf "/run/secrets/engine-tls/%s/ca.crt" $name)) }}
{{- end }}
{{- with $pool.lora }}
{{- if lt (int .cpuLoras) (int .loras) }}{{ fail (printf "pools.%s.lora: cpuLoras %v is under loras %v: no engine starts" $name .cpuLoras .loras) }}{{ end }}
{{- $_ := set $made "base_folder" (printf "/models/%s" $name) }}
{{- $_ := set $made "max_loras" .loras }}
{{- $_ := set $made "max_cpu_loras" .cpuLoras }}
{{- $_ := set $made "max_lora_rank" .rank }}
{{- end }}
{{- if and $pool.lora (eq $pool.store "sidecar") }}{{ $_ := set $discover "sidecar_port" 8090 }}{{ end }}
{{- $_ := set $made "discover" $discover }}
{{- $_ := set $pools $name (mergeOverwrite $made $pool.settings) }}
{{- end }}
{{- $general := .Values.config.general_pool | default "general" }}
{{- if not (hasKey $pools $general) }}{{ fail (printf "pools: there is no pool %q: make one, or name another in config.general_pool" $general) }}{{ end }}
{{- $own := .Values.redis.tlsSecret | empty | ternary "redis://redis:6379/0" "rediss://redis:6379/0" }}
{{- $redis := dict "redis_url" (.Values.redis.url | default $own) "redis_password_file" "/run/secrets/apprentice/redis-password" }}
{{- if .Values.redis.tlsSecret }}{{ $_ := set $redis "redis_tls" (dict "ca_file" "/run/secrets/redis-tls/ca.crt") }}{{ end }}
{{- $listen := dict "host" "0.0.0.0" "port" 8080 "admin" (dict "host" "0.0.0.0" "port" 8081) "metrics" (dict "host" "0.0.0.0" "port" 9090) }}
{{- if .Values.gateway.tlsSecret }}{{ $_ := set $listen "tls" (dict "cert_file" "/run/secrets/tls/tls.crt" "key_file" "/run/secrets/tls/tls.key") }}{{ end }}
{{- $limits := dict "drain_seconds_min" 5 "drain_seconds_max" .Values.gateway.drainSeconds }}
{{- if .Values.ingress.enabled }}{{ $_ := set $limits "address_share_max" 1 }}{{ end }}
{{- $state := dict "listen" $listen "data_folder" "/var/lib/apprentice/data" "store_folder" "/adapters" "processes" .Values.gateway.processes "pools" $pools "limits" $limits "datasets" (dict "folder" "/records/datasets") "records" (dict "archive_folder" "/records/archive") }}
{{- mergeOverwrite $state $redis (deepCopy .Values.config) | toYaml }}
{{- end }}

{{/* KEDA or an HPA that holds a query at a target for each pod. */}}
{{- define "scaling" -}}
{{- if gt (int .auto.min) (int .auto.max) }}
{{- fail (printf "autoscaling of %s: min %v is over max %v" .name .auto.min .auto.max) }}
{{- end }}
{{- if eq .auto.kind "keda" }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ .name }}
  labels: {{- include "labels" .name | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: {{ .kind }}, name: {{ .name }}}
  minReplicaCount: {{ .auto.min }}
  maxReplicaCount: {{ .auto.max }}
  cooldownPeriod: 600
  triggers:
    - type: prometheus
      metadata:
        serverAddress: {{ .prometheus }}
        query: {{ .query | quote }}
        threshold: {{ .auto.target | quote }}
{{- else if eq .auto.kind "hpa" }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ .name }}
  labels: {{- include "labels" .name | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: {{ .kind }}, name: {{ .name }}}
  minReplicas: {{ .auto.min }}
  maxReplicas: {{ .auto.max }}
  # The metrics are those that an adapter for Prometheus serves under these names.
  metrics:
    {{- range .metrics }}
    - type: Pods
      pods:
        metric: {name: {{ . }}}
        target: {type: AverageValue, averageValue: {{ $.auto.target | quote }}}
    {{- end }}
  behavior:
    scaleDown: {stabilizationWindowSeconds: 600}
{{- end }}
{{- end }}
