{{- define "namegate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "namegate.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "namegate.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What never changes: DaemonSets and Deployments can't change their selectors. Takes the root and a component. */}}
{{- define "namegate.selector" -}}
app.kubernetes.io/name: {{ include "namegate.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "namegate.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "namegate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "namegate.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "namegate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "namegate.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/*
A map as TOML: single values first, then maps as sections. Takes a list of the map and its path. Values of a chart have only
floating numbers: JSON writes whole ones as such, and JSON's texts and lists are TOML's.
*/}}
{{- define "namegate.toml" -}}
{{- $map := index . 0 -}}
{{- $path := index . 1 -}}
{{- range $key, $value := $map }}
{{- if not (kindIs "map" $value) }}
{{ template "namegate.tomlKey" $key }} = {{ $value | mustToRawJson }}
{{- end }}
{{- end }}
{{- range $key, $value := $map }}
{{- if kindIs "map" $value }}
{{- $section := append $path (include "namegate.tomlKey" $key) }}

[{{ join "." $section }}]
{{- include "namegate.toml" (list $value $section) }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "namegate.tomlKey" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ . | mustToRawJson }}{{ end -}}
{{- end -}}

{{/* Something, where DNS is to be served on a port that the kernel gives to nobody without NET_BIND_SERVICE. */}}
{{- define "namegate.privilegedPort" -}}
{{- $dns := dig "dns" dict (.Values.config | default dict) -}}
{{- range list (int (dig "port" 15353 $dns)) (int (dig "tls_port" 0 $dns)) -}}
{{- if and (gt . 0) (lt . 1024) }}{{ . }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Whether what pods receive is judged on their own side. */}}
{{- define "namegate.inboundPod" -}}
{{- if eq "pod" (dig "enforcement" "inbound" "host" (.Values.config | default dict)) }}true{{ end -}}
{{- end -}}

{{/* What values.yaml says under agent.resources, in octets. Takes the root and whether what comes as it goes counts. */}}
{{- define "namegate.memory" -}}
{{- $config := .root.Values.config | default dict -}}
{{- $flows := mul (int64 (dig "enforcement" "max_flows" 131072 $config)) 136 -}}
{{- $grants := mul (int64 (dig "enforcement" "max_grants" 262144 $config)) (add 192 135) -}}
{{- $endpoints := mul (int64 (dig "enforcement" "max_endpoints" 4096 $config)) 1024 -}}
{{- $cache := int64 (dig "cache" "max_bytes" 67108864 $config) -}}
{{- $mebi := 1048576 -}}
{{- $octets := add (mul 256 $mebi) $flows $endpoints -}}
{{- if .all -}}
{{- $octets = add $octets $grants $cache -}}
{{- end -}}
{{- printf "%dMi" (div (add $octets $mebi -1) $mebi) -}}
{{- end -}}

{{- define "namegate.agentResources" -}}
{{- $resources := deepCopy .Values.agent.resources -}}
{{- $limits := $resources.limits | default dict -}}
{{- $requests := $resources.requests | default dict -}}
{{- if not $limits.memory -}}
{{- $_ := set $limits "memory" (include "namegate.memory" (dict "root" . "all" true)) -}}
{{- end -}}
{{- if not $requests.memory -}}
{{- $_ := set $requests "memory" (include "namegate.memory" (dict "root" . "all" false)) -}}
{{- end -}}
{{- toYaml (dict "requests" $requests "limits" $limits) -}}
{{- end -}}

{{/* What a collector needs of the API server to be itself: a token that ends, and whom to trust. */}}
{{- define "namegate.tokenVolume" -}}
- name: token
  projected:
    defaultMode: 0444
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3607
      - configMap:
          name: kube-root-ca.crt
          items:
            - {key: ca.crt, path: ca.crt}
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                fieldPath: metadata.namespace
{{- end -}}

{{- define "namegate.collectorSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .Values.collector.runAsUser }}
runAsGroup: {{ .Values.collector.runAsUser }}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* What is wrong with the values and no schema can say. */}}
{{- define "namegate.check" -}}
{{- $none := list "0" "0%" -}}
{{- $agent := .Values.agent -}}
{{- $collector := .Values.collector.metrics -}}
{{- $surge := dig "rollingUpdate" "maxSurge" 0 $agent.updateStrategy | toString -}}
{{- $unavailable := dig "rollingUpdate" "maxUnavailable" 1 $agent.updateStrategy | toString -}}
{{- if and (not (has $surge $none)) $collector.enabled -}}
{{- $what := "two collectors on one host can't have one port; one of them has to go" -}}
{{- fail (printf "agent.updateStrategy.rollingUpdate.maxSurge with collector.metrics.enabled: %s" $what) -}}
{{- end -}}
{{- if and (has $surge $none) (has $unavailable $none) -}}
{{- fail "agent.updateStrategy.rollingUpdate: maxSurge and maxUnavailable are both 0; one of them has to be more" -}}
{{- end -}}
{{- if and $collector.enabled (eq (int $collector.port) (int $agent.metrics.port)) -}}
{{- fail "collector.metrics.port is agent.metrics.port: both are on the host's network; two ports are needed" -}}
{{- end -}}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) -}}
{{- fail "serviceAccount: create is false and name is empty, so it would be the namespace's default; a name is needed" -}}
{{- end -}}
{{- end -}}
