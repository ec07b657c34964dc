{{/* What a gateway's and a sidecar's pod have in common. */}}
{{- define "hookward.pod" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* hookward's container. */}}
{{- define "hookward.container" -}}
name: hookward
image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  - {name: HOOKWARD_CONFIG, value: /etc/hookward/hookward.yaml}
  {{- with .Values.extraEnv }}{{ toYaml . | nindent 2 }}{{ end }}
ports:
  - {name: webhooks, containerPort: 8080}
  - {name: hookward-admin, containerPort: 9464}
startupProbe:
  httpGet: {path: /readyz, port: hookward-admin}
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /readyz, port: hookward-admin}
  periodSeconds: 5
livenessProbe:
  httpGet: {path: /livez, port: hookward-admin}
  periodSeconds: 10
  timeoutSeconds: 5
resources: {{- toYaml .Values.resources | nindent 2 }}
securityContext: {{- include "hookward.restricted" . | nindent 2 }}
volumeMounts:
  - {name: hookward-config, mountPath: /etc/hookward, readOnly: true}
  - {name: hookward-secrets, mountPath: /run/secrets/hookward, readOnly: true}
  {{- if .Values.persistence.enabled }}
  - {name: hookward-data, mountPath: /var/lib/hookward}
  {{- end }}
{{- end }}

{{- define "hookward.restricted" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end }}

{{- define "hookward.volumes" -}}
- name: hookward-config
  configMap: {name: {{ include "hookward.name" . }}}
- name: hookward-secrets
  secret: {secretName: {{ .Values.secretName }}, defaultMode: 0440}
{{- end }}

{{- define "hookward.claim" -}}
accessModes: [ReadWriteOnce]
{{- with .Values.persistence.storageClass }}
storageClassName: {{ . }}
{{- end }}
resources: {requests: {storage: {{ .Values.persistence.size }}}}
{{- end }}
