{{- define "pinfold.name" -}}
{{- $name := .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- if contains "pinfold" $name }}{{ $name }}{{ else }}{{ printf "%s-pinfold" $name }}{{ end -}}
{{- end -}}

{{- define "pinfold.labels" -}}
app.kubernetes.io/name: pinfold
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "pinfold.selector" -}}
app.kubernetes.io/name: pinfold
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pinfold.insecure" -}}
{{- if not .Values.insecureListen -}}
{{- fail "insecureListen is false: the scheduler has no TLS yet, and whoever reaches its port owns the fleet. Say insecureListen=true if only trusted pods can reach it." -}}
{{- end -}}
{{- end -}}
