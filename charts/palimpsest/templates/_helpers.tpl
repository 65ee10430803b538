{{- define "palimpsest.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "palimpsest.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "palimpsest.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "palimpsest.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* What selects pods: no version in it, since selectors cannot change. */ -}}
{{- define "palimpsest.selector" -}}
app.kubernetes.io/name: {{ include "palimpsest.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "palimpsest.labels" -}}
{{ include "palimpsest.selector" . }}
app.kubernetes.io/part-of: palimpsest
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "palimpsest.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "palimpsest.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "palimpsest.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "palimpsest.controlSecret" -}}
{{- default "palimpsest-control" .Values.controlAuth.secretName -}}
{{- end -}}

{{- /* Exactly what the operator asks for: the audit log of the stories is held against it. */ -}}
{{- define "palimpsest.rules.namespaced" -}}
- apiGroups: [palimpsest.dev]
  resources: [pageserverpools, tenants, timelines]
  verbs: [list, watch]
# Finalizers; what users want is never changed.
- apiGroups: [palimpsest.dev]
  resources: [tenants, timelines]
  verbs: [patch]
- apiGroups: [palimpsest.dev]
  resources: [pageserverpools/status, tenants/status, timelines/status]
  verbs: [update]
# What we make for a tenant names it as its owner with blockOwnerDeletion, which some clusters ask this for.
- apiGroups: [palimpsest.dev]
  resources: [tenants/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [list, watch, create, patch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch, create, patch]
# Some clusters check what addresses an EndpointSlice leads to.
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices/restricted]
  verbs: [create]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# The readiness gate only.
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{- /* What has no namespace: drained nodes and their zones, and labels of namespaces that pools admit. */ -}}
{{- define "palimpsest.rules.cluster" -}}
- apiGroups: [""]
  resources: [nodes, namespaces]
  verbs: [list, watch]
{{- end -}}
